"""What happens at home before anything leaves: import, build, pack, sign.

1. Import ``experiment.py`` of the folder: the only place it is ever imported outside a trainer.
2. Validate the plan and build the initial model under the plan's seed.
3. Write the initial model as safetensors and the folder as an archive, both in a private temporary folder.
4. Put the SHA-256 of everything into a manifest, bound to federation, submitter, a nonce and an expiry, and sign it.

The director stores the archive and never opens it; each silo verifies signature and digests before it unpacks.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.bundle.manifest import Manifest, new_nonce, payload_digest
from federation.bundle.packing import file_digest, pack
from federation.bundle.signing import SignedManifest, sign_manifest
from federation.errors import ConfigurationError
from federation.names import FederationName, UserName
from federation.pki.signing import load_signing_key
from federation.storage.safetensors_files import write_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.client.profile import Profile

VALID_FOR_S = 7 * 86400.0
"""How long a signature may wait for a silo to accept it, seconds: a week, so that an owner can approve by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An experiment ready to be sent: the signed manifest and the two files it speaks of."""

    signed: SignedManifest
    manifest: Manifest
    archive: Path
    model: Path


@contextlib.contextmanager
def packaged(folder: Path, profile: Profile, *, submitter: UserName, now: float) -> Iterator[Package]:
    """Build, pack and sign the experiment in `folder`; its files live until the context ends.

    Args:
        folder: holds ``experiment.py`` and what it imports.
        profile: names the federation and the signing key.
        submitter: our name as the director reads it from our certificate.
        now: Unix time, seconds; the signature expires `VALID_FOR_S` later.

    Raises:
        PlanError: the folder, its plan or its model is not sound.
        ConfigurationError: there is no signing key.
    """
    # Loads NumPy, and torch where the experiment does, only when something is submitted.
    from federation.training.importing import load_experiment

    if not profile.signing_key.exists():
        raise ConfigurationError(
            f"no signing key at {profile.signing_key}: make one with `federation pki signing-key "
            f"{profile.signing_key}` and have the silos pin its fingerprint"
        )
    experiment = load_experiment(folder)
    spec, arrays = experiment.build(project=profile.project if experiment.project == "default" else None)
    with tempfile.TemporaryDirectory(prefix="federation-submit-") as name:
        model = Path(name) / "initial.safetensors"
        archive = Path(name) / "bundle.zip"
        write_model(model, spec.schema_, arrays)
        packed = pack(folder, archive)
        manifest = Manifest(
            federation=FederationName(profile.federation),
            submitter=submitter,
            spec=spec,
            files=packed.files,
            bundle_digest=packed.digest,
            bundle_bytes=packed.nbytes,
            model_digest=file_digest(model),
            model_bytes=model.stat().st_size,
            model_payload_digest=payload_digest(spec.schema_.federated, arrays),
            base_payload_digest=payload_digest(spec.schema_.local, arrays),
            nonce=new_nonce(),
            not_after=now + VALID_FOR_S,
        )
        yield Package(
            signed=sign_manifest(manifest, load_signing_key(profile.signing_key)),
            manifest=manifest,
            archive=archive,
            model=model,
        )
