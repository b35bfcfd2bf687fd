"""What the client shows: director messages as plain, frozen values that go to JSON as they are.

Keys are part of the command's contract (``--json``); new ones may be added, none is renamed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import cast

from federation.names import ExperimentState
from federation.v1 import director_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentSummary:
    """One line about an experiment; times are Unix seconds."""

    experiment: str
    name: str
    project: str
    submitted_by: str
    state: str
    reason: str
    degraded: bool
    rounds_done: int
    rounds_planned: int
    submitted_at: float
    changed_at: float
    sites: tuple[str, ...]

    @property
    def is_over(self) -> bool:
        """True once the experiment can change no more."""
        return ExperimentState(self.state).is_terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Something to download: `bytes` in size, `digest` SHA-256 hex, `round` 0 if of none."""

    name: str
    bytes: int
    digest: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteParticipation:
    """A site's part in an experiment."""

    site: str
    answer: str
    reason: str
    shards: tuple[str, ...]
    examples: int
    quarantined_since: int
    quarantine_reason: str
    releases: int

    @property
    def standing(self) -> str:
        """Its answer, and whether it is in quarantine."""
        since = self.quarantined_since
        return f"{self.answer}, in quarantine since round {since}" if since else self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One state change; `actor` is the SPIFFE id of who asked."""

    state: str
    reason: str
    actor: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one site did in one round; seconds, bytes, and metrics as it reported them."""

    site: str
    outcome: str
    reason: str
    examples: int
    validation_examples: int
    weight: float
    update_norm: float
    train_seconds: float
    transfer_seconds: float
    bytes_up: int
    bytes_down: int
    train_metrics: dict[str, float]
    metrics: dict[str, float]
    update_digest: str
    oracle_calls: int
    peak_memory: int
    staleness: int
    scores: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A site in quarantine: since which round, how often it had been released before, and why."""

    site: str
    since_round: int
    releases: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One committed round."""

    round: int
    epoch: int
    started_at: float
    seconds: float
    phase_seconds: dict[str, float]
    train_metrics: dict[str, float]
    metrics: dict[str, float]
    model_digest: str
    is_best: bool
    bytes_down: int
    bytes_up: int
    update_norm: float
    simulated_seconds: float
    algorithm_scalars: dict[str, float]
    total_sites: int
    rule_note: str
    quarantined: tuple[Quarantine, ...]
    unevaluated: dict[str, str]
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentDetails:
    """All about one experiment."""

    summary: ExperimentSummary
    plan: dict[str, object]
    sites: tuple[SiteParticipation, ...]
    rounds: tuple[Round, ...]
    artifacts: tuple[Artifact, ...]
    transitions: tuple[Transition, ...]
    manifest_digest: str
    signing_fingerprint: str
    aggregator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a running round is."""

    round: int
    phase: str
    sites_asked: int
    sites_done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `sequence` is the cursor to go on from."""

    sequence: int
    at: float
    experiment: str
    site: str
    kind: str
    text: str
    transition: Transition | None
    round: Round | None
    progress: Progress | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard a site offers."""

    name: str
    kind: str
    train_examples: int
    validation_examples: int
    sample_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Envoy:
    """One envoy of the federation."""

    site: str
    online: bool
    last_seen_at: float
    software: str
    running: int
    quarantined_in: tuple[str, ...]
    shards: tuple[Shard, ...]


def state_name(value: int) -> str:
    """Return the name of a wire state, such as ``"running"``."""
    return pb.ExperimentState.Name(value).removeprefix("EXPERIMENT_STATE_").lower()


def state_value(name: str) -> pb.ExperimentState:
    """Return the wire value of a state name."""
    return cast("pb.ExperimentState", pb.ExperimentState.Value(f"EXPERIMENT_STATE_{ExperimentState(name).name}"))


def summary_of(message: pb.ExperimentSummary) -> ExperimentSummary:
    """Read a summary."""
    return ExperimentSummary(
        experiment=message.experiment,
        name=message.name,
        project=message.project,
        submitted_by=message.submitted_by,
        state=state_name(message.state),
        reason=message.reason,
        degraded=message.degraded,
        rounds_done=message.rounds_done,
        rounds_planned=message.rounds_planned,
        submitted_at=message.submitted_at,
        changed_at=message.changed_at,
        sites=tuple(message.sites),
    )


def artifact_of(message: pb.Artifact) -> Artifact:
    """Read an artifact's description."""
    return Artifact(name=message.name, bytes=message.bytes, digest=message.digest, round=message.round)


def transition_of(message: pb.Transition) -> Transition:
    """Read a state change."""
    return Transition(state=state_name(message.state), reason=message.reason, actor=message.actor, at=message.at)


def _contribution_of(message: pb.Contribution) -> Contribution:
    return Contribution(
        site=message.site,
        outcome=message.outcome,
        reason=message.reason,
        examples=message.examples,
        validation_examples=message.validation_examples,
        weight=message.weight,
        update_norm=message.update_norm,
        train_seconds=message.train_seconds,
        transfer_seconds=message.transfer_seconds,
        bytes_up=message.bytes_up,
        bytes_down=message.bytes_down,
        train_metrics=dict(message.train_metrics),
        metrics=dict(message.metrics),
        update_digest=message.update_digest,
        oracle_calls=message.oracle_calls,
        peak_memory=message.peak_memory,
        staleness=message.staleness,
        scores=dict(message.scores),
    )


def round_of(message: pb.RoundReport) -> Round:
    """Read a round's report."""
    return Round(
        round=message.round,
        epoch=message.epoch,
        started_at=message.started_at,
        seconds=message.seconds,
        phase_seconds=dict(message.phase_seconds),
        train_metrics=dict(message.train_metrics),
        metrics=dict(message.metrics),
        model_digest=message.model_digest,
        is_best=message.is_best,
        bytes_down=message.bytes_down,
        bytes_up=message.bytes_up,
        update_norm=message.update_norm,
        simulated_seconds=message.simulated_seconds,
        algorithm_scalars=dict(message.algorithm_scalars),
        total_sites=message.total_sites,
        rule_note=message.rule_note,
        quarantined=tuple(
            Quarantine(site=row.site, since_round=row.since_round, releases=row.releases, reason=row.reason)
            for row in message.quarantined
        ),
        unevaluated=dict(sorted(message.unevaluated.items())),
        contributions=tuple(_contribution_of(contribution) for contribution in message.contributions),
    )


def details_of(message: pb.GetExperimentReply) -> ExperimentDetails:
    """Read all about one experiment."""
    return ExperimentDetails(
        summary=summary_of(message.summary),
        plan=json.loads(message.plan_json or "{}"),
        sites=tuple(
            SiteParticipation(
                site=site.site,
                answer=site.answer,
                reason=site.reason,
                shards=tuple(site.shards),
                examples=site.examples,
                quarantined_since=site.quarantined_since,
                quarantine_reason=site.quarantine_reason,
                releases=site.releases,
            )
            for site in message.sites
        ),
        rounds=tuple(round_of(report) for report in message.rounds),
        artifacts=tuple(artifact_of(artifact) for artifact in message.artifacts),
        transitions=tuple(transition_of(transition) for transition in message.transitions),
        manifest_digest=message.manifest_digest,
        signing_fingerprint=message.signing_fingerprint,
        aggregator=message.aggregator,
    )


def event_of(message: pb.Event) -> Event:
    """Read an event."""
    phase = message.phase
    return Event(
        sequence=message.sequence,
        at=message.at,
        experiment=message.experiment,
        site=message.site,
        kind=message.kind,
        text=message.text,
        transition=transition_of(message.transition) if message.HasField("transition") else None,
        round=round_of(message.report) if message.HasField("report") else None,
        progress=Progress(
            round=phase.round, phase=phase.phase, sites_asked=phase.sites_asked, sites_done=phase.sites_done
        )
        if message.HasField("phase")
        else None,
    )


def envoy_of(message: pb.EnvoySummary) -> Envoy:
    """Read an envoy."""
    return Envoy(
        site=message.site,
        online=message.online,
        last_seen_at=message.last_seen_at,
        software=message.software,
        running=message.running,
        quarantined_in=tuple(message.quarantined_in),
        shards=tuple(
            Shard(
                name=shard.name,
                kind=shard.kind,
                train_examples=shard.train_examples,
                validation_examples=shard.validation_examples,
                sample_shape=tuple(shard.sample_shape),
                target_shape=tuple(shard.target_shape),
                description=shard.description,
            )
            for shard in message.shards
        ),
    )


def to_json(view: object) -> str:
    """Return a view, or a list of views, as one line of JSON."""
    if isinstance(view, (list, tuple)):
        return json.dumps([dataclasses.asdict(item) for item in view])
    return json.dumps(dataclasses.asdict(view))  # type: ignore[call-overload]
