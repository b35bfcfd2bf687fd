"""What the store hands out and takes in: frozen values, free of the database session they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from director.scheduling import Need
    from federation.names import Epoch, ExperimentId, ExperimentState, SiteName, UserName


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A verified submission, ready to be stored; sizes in bytes, digests hex, times Unix seconds.

    Attributes:
        experiment: id chosen for it.
        name: name its author gave it.
        project: project it belongs to.
        user: who submitted it, from the certificate.
        actor: SPIFFE id of the same.
        spec: canonical JSON of its `ExperimentSpec`.
        need: what it needs to start.
        minimum_sites: fewest sites it may go on with.
        rounds: rounds in its plan.
        manifest: signed manifest, exactly the signed bytes.
        signature: signature over it, DER.
        signing_key: public signing key, DER.
        manifest_digest: SHA-256 of the manifest.
        signing_fingerprint: fingerprint of the signing key.
        bundle_bytes: size of the bundle archive.
        nonce: the manifest's nonce; accepted once per signing key.
        at: when it was received.
    """

    experiment: ExperimentId
    name: str
    project: str
    user: UserName
    actor: str
    spec: str
    need: Need
    minimum_sites: int
    rounds: int
    manifest: bytes
    signature: bytes
    signing_key: bytes
    manifest_digest: str
    signing_fingerprint: str
    bundle_bytes: int
    nonce: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """An experiment as the database has it, less what was signed; see `Submission` for what its fields are."""

    id: ExperimentId
    name: str
    project: str
    submitted_by: UserName
    state: ExperimentState
    reason: str
    degraded: bool
    submitted_at: float
    changed_at: float
    need: Need
    minimum_sites: int
    rounds_planned: int
    rounds_done: int
    manifest_digest: str
    signing_fingerprint: str
    bundle_bytes: int
    epoch: Epoch
    address: str
    metrics_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRecord:
    """What the submitter signed: manifest as received, signature (DER), public signing key (DER)."""

    manifest: bytes
    signature: bytes
    signing_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionRecord:
    """One state change that happened."""

    state: ExperimentState
    reason: str
    actor: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipationRecord:
    """A site's part in an experiment.

    Attributes:
        answer: ``asked``, ``pending``, ``accepted``, ``refused``, ``lost`` or ``finished``.
        reason: why it refused or was lost.
        shards: its shards that take part.
        train_examples: training examples its envoy declared; bounds every later claim.
        validation_examples: likewise for validation.
        quarantined_since: round that quarantined it; 0 if it is not in quarantine.
        quarantine_reason: why.
        releases: times an operator released it.
    """

    experiment: ExperimentId
    site: SiteName
    answer: str
    reason: str
    shards: tuple[str, ...]
    train_examples: int
    validation_examples: int
    quarantined_since: int = 0
    quarantine_reason: str = ""
    releases: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """A stored artifact: size in bytes, SHA-256 in hex, the round it is of (0: none)."""

    name: str
    bytes: int
    digest: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyRecord:
    """An envoy that has attended: software release and when it was last seen."""

    site: SiteName
    software: str
    last_seen_at: float
