"""The federation's authority, and an experiment built and packed as `federation submit` would."""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from federation import bundle
from federation.bundle import Manifest, SignedManifest
from federation.names import (
    ExperimentId,
    FederationName,
    Identity,
    Role,
    SiteName,
    UserName,
    aggregator_server_name,
)
from federation.pki.authority import DAY_S, CertificateAuthority, issue_identity
from federation.pki.signing import make_signing_key
from federation.storage.safetensors_files import write_model
from federation.tensors import pack
from federation.training.importing import load_experiment
from federation.transport.credentials import TlsFiles
from federation.v1 import director_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from cryptography.hazmat.primitives.asymmetric import ec

    from federation.plan import ExperimentSpec


FEDERATION = FederationName("care")
SITE = SiteName("north")
EXPERIMENT = ExperimentId("trial-00000001")
WAIT_S = 60.0
"""Longest a test waits for something that should happen at once; trainers start within it on a busy machine."""


EXPERIMENT_SOURCE = """
import numpy as np
from federation import Experiment, Plan

class Task:
    def train(self, model, data, round):
        {train}
        model["w"] += np.float32(round.number)
        return {{"loss": 1.0 / round.number}}

    def evaluate(self, model, data):
        {evaluate}
        return {{"loss": float(model["w"].mean())}}

experiment = Experiment(
    name="trial", model=lambda: {{"w": np.zeros({elements}, np.float32)}}, task=Task(), shard="numbers",
    plan=Plan(rounds={rounds}, sites={sites}, minimum_sites={sites}, downlink={downlink!r},
              compression={compression!r}),
)
"""


@dataclass
class Pki:
    """The federation's authority, and identities as they are asked for."""

    folder: Path
    authority: CertificateAuthority

    def issue_due(self, role: Role, name: str, *, left_s: float = 5 * DAY_S) -> TlsFiles:
        """Issue what should have been renewed by now, and is valid for a while still."""
        identity = Identity(federation=FEDERATION, role=role, name=name)
        folder = self.folder / f"{role.value}-{name}"
        issue_identity(self.authority, identity, folder, now=time.time() - 5 * left_s, lifetime_s=6 * left_s)
        return TlsFiles.in_folder(folder)

    def issue(self, role: Role, name: str) -> TlsFiles:
        folder = self.folder / f"{role.value}-{name}"
        if not folder.exists():
            identity = Identity(federation=FEDERATION, role=role, name=name)
            issue_identity(self.authority, identity, folder, now=time.time())
        return TlsFiles.in_folder(folder)


@dataclass
class Trial:
    """An experiment, built and packed as `federation submit` would."""

    folder: Path
    archive: Path
    spec: ExperimentSpec
    arrays: Mapping[str, np.ndarray]
    manifest: Manifest
    key: ec.EllipticCurvePrivateKey

    @cached_property
    def signed(self) -> SignedManifest:
        return bundle.sign_manifest(self.manifest, self.key)

    @property
    def first_model(self) -> bytes:
        return bytes(pack(self.spec.schema_.federated, self.arrays))

    def assignment(self, address: str, **changes: Any) -> director_pb2.Assignment:
        signed = self.signed
        fields = {
            "experiment": EXPERIMENT,
            "shards": ["ward"],
            "aggregator_address": address,
            "aggregator_server_name": aggregator_server_name(FEDERATION, EXPERIMENT),
            "manifest": signed.manifest,
            "signature": signed.signature,
            "signing_key": signed.signing_key,
            "submitted_by": "ada",
            "bundle_bytes": self.manifest.bundle_bytes,
        }
        return director_pb2.Assignment(**{**fields, **changes})


def pack_trial(
    tmp_path: Path,
    train: str = "pass",
    *,
    evaluate: str = "pass",
    elements: int = 8,
    sites: int = 1,
    rounds: int = 3,
    downlink: str = "identity",
    compression: str = "identity",
) -> Trial:
    """Write, build and pack an experiment in a folder."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    train, evaluate = (textwrap.indent(textwrap.dedent(body).strip(), " " * 8).lstrip() for body in (train, evaluate))
    source = EXPERIMENT_SOURCE.format(
        train=train, evaluate=evaluate, elements=elements, sites=sites, rounds=rounds, downlink=downlink,
        compression=compression,
    )  # fmt: skip
    (folder / "experiment.py").write_text(source)
    spec, arrays = load_experiment(folder).build()
    packed = bundle.pack(folder, tmp_path / "bundle.zip")
    manifest = Manifest(
        federation=FEDERATION,
        submitter=UserName("ada"),
        spec=spec,
        files=packed.files,
        bundle_digest=packed.digest,
        bundle_bytes=packed.nbytes,
        model_digest=write_model(tmp_path / "initial.safetensors", spec.schema_, arrays),
        model_bytes=(tmp_path / "initial.safetensors").stat().st_size,
        model_payload_digest=bundle.payload_digest(spec.schema_.federated, arrays),
        base_payload_digest=bundle.payload_digest(spec.schema_.local, arrays),
        nonce=bundle.new_nonce(),
        not_after=time.time() + 3600,
    )
    key = make_signing_key(tmp_path / "ada.key")
    return Trial(folder, tmp_path / "bundle.zip", spec, arrays, manifest, key)
