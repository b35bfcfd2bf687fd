"""An assignment on its way to an answer: its manifest is opened and checked, then put as a question to policy.

Nothing is remembered here and nobody is told: that is `envoy.experiments`' part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy import admission, fetching
from federation import bundle
from federation.names import FederationName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envoy.config import EnvoySettings
    from federation.bundle import VerifiedManifest
    from federation.v1 import director_pb2


def open_assignment(assignment: director_pb2.Assignment, settings: EnvoySettings, now: float) -> VerifiedManifest:
    """Open the manifest of an assignment, and check that its bundle may be fetched; blocks.

    Args:
        assignment: as the director sent it.
        settings: the owner's.
        now: present time, Unix seconds.

    Raises:
        BundleError: signature, manifest or announced size are not what they should be.
        LimitError: the bundle is larger than the owner allows.
    """
    signed = bundle.SignedManifest(
        manifest=assignment.manifest, signature=assignment.signature, signing_key=assignment.signing_key
    )
    verified = bundle.open_manifest(signed, federation=FederationName(settings.federation), now=now)
    fetching.check_size(verified.manifest, assignment.bundle_bytes, settings.limits.max_bundle_bytes)
    return verified


def request_of(
    assignment: director_pb2.Assignment,
    verified: VerifiedManifest,
    *,
    pinned: str | None,
    approved: bool,
    running: int,
    offered: Mapping[str, admission.OfferedShard],
) -> admission.Request:
    """Return the question that an assignment puts to policy.

    Args:
        assignment: as the director sent it.
        verified: its manifest.
        pinned: fingerprint that is pinned for who submitted it; None without one.
        approved: the owner has approved it.
        running: other experiments accepted here.
        offered: shards on offer, by name.
    """
    manifest = verified.manifest
    spec = manifest.spec
    return admission.Request(
        submitter=manifest.submitter,
        seen_as=assignment.submitted_by,
        fingerprint=verified.fingerprint,
        pinned=pinned,
        rounds=spec.plan.rounds,
        rule=spec.plan.rule,
        bundle_digest=manifest.bundle_digest.hex(),
        shard_kind=spec.shard,
        sample_shape=spec.sample_shape,
        target_shape=spec.target_shape,
        shards=tuple(assignment.shards),
        approved=approved,
        running=running,
        offered=offered,
    )
