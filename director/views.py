"""Records as messages: what people see of experiments, sites and artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from director.store.experiments import wire_state
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from director.scheduling import Shard
    from director.store.records import (
        ArtifactRecord,
        EnvoyRecord,
        ExperimentRecord,
        ParticipationRecord,
        TransitionRecord,
    )
    from federation.names import SiteName


def summary(record: ExperimentRecord, accepted: Sequence[SiteName]) -> pb.ExperimentSummary:
    """Return one line about an experiment; `accepted` are the sites that accepted it."""
    return pb.ExperimentSummary(
        experiment=record.id,
        name=record.name,
        project=record.project,
        submitted_by=record.submitted_by,
        state=wire_state(record.state),
        reason=record.reason,
        degraded=record.degraded,
        rounds_done=record.rounds_done,
        rounds_planned=record.rounds_planned,
        submitted_at=record.submitted_at,
        changed_at=record.changed_at,
        sites=accepted,
    )


def participation(record: ParticipationRecord) -> pb.SiteParticipation:
    """Return a site's part in an experiment."""
    return pb.SiteParticipation(
        site=record.site,
        answer=record.answer,
        reason=record.reason,
        shards=record.shards,
        examples=record.train_examples,
        quarantined_since=record.quarantined_since,
        quarantine_reason=record.quarantine_reason,
        releases=record.releases,
    )


def transition(record: TransitionRecord) -> pb.Transition:
    """Return a state change."""
    return pb.Transition(state=wire_state(record.state), reason=record.reason, actor=record.actor, at=record.at)


def artifact(record: ArtifactRecord) -> pb.Artifact:
    """Return what can be downloaded."""
    return pb.Artifact(name=record.name, bytes=record.bytes, digest=record.digest, round=record.round)


def envoy(
    record: EnvoyRecord, shards: Sequence[Shard], *, online: bool, running: int, quarantined_in: Sequence[str]
) -> pb.EnvoySummary:
    """Return one envoy: whether it has a session, in how many experiments it takes part, which of them hold it."""
    return pb.EnvoySummary(
        site=record.site,
        online=online,
        last_seen_at=record.last_seen_at,
        software=record.software,
        shards=[_offer(shard) for shard in shards],
        running=running,
        quarantined_in=quarantined_in,
    )


def _offer(shard: Shard) -> pb.ShardOffer:
    return pb.ShardOffer(
        name=shard.name,
        kind=shard.kind,
        train_examples=shard.train_examples,
        validation_examples=shard.validation_examples,
        sample_shape=shard.sample_shape,
        target_shape=shard.target_shape,
        description=shard.description,
    )
