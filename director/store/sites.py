"""Envoys, what they offer, and their part in experiments.

Rules, in order:

1. Offers replace what the envoy offered before, whole.
2. A site is asked once per experiment; asking again changes nothing, so that assignments can be repeated.
3. Answers follow one table: what was refused or finished stays so; a lost site may accept again.
4. Who is in quarantine its aggregator decides and reports with each round; who is released an operator. Releases are
   counted, and a report that does not know of the latest yet is not believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from director.scheduling import Match, Shard, Site
from director.store import events, tables
from director.store.records import EnvoyRecord, ParticipationRecord
from federation.errors import NotFoundError
from federation.names import ExperimentId, ShardName, SiteName
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy.orm import Session

ASKED, PENDING, ACCEPTED, REFUSED, LOST, FINISHED = "asked", "pending", "accepted", "refused", "lost", "finished"
UNDECIDED = (ASKED, PENDING)
OPEN_ANSWERS = (ASKED, PENDING, ACCEPTED)
"""Answers of sites that take part or may yet."""

_NEXT: Mapping[str, tuple[str, ...]] = {
    ASKED: (PENDING, ACCEPTED, REFUSED, LOST, FINISHED),
    PENDING: (ACCEPTED, REFUSED, LOST, FINISHED),
    ACCEPTED: (REFUSED, LOST, FINISHED),
    LOST: (PENDING, ACCEPTED, REFUSED, FINISHED),
    REFUSED: (),
    FINISHED: (),
}


def attend(session: Session, site: str, software: str, at: float) -> None:
    """Note that an envoy has a session now."""
    row = session.get(tables.Envoy, site)
    if row is None:
        session.add(tables.Envoy(site=site, software=software, last_seen_at=at))
    else:
        row.software, row.last_seen_at = software, at


def leave(session: Session, site: str, at: float) -> None:
    """Note when an envoy was last seen."""
    row = session.get(tables.Envoy, site)
    if row is not None:
        row.last_seen_at = at


def offer(session: Session, site: str, shards: Iterable[Shard], at: float) -> None:
    """Replace what a site offers."""
    leave(session, site, at)
    session.execute(delete(tables.Shard).where(tables.Shard.site == site))
    rows = [
        {
            "site": site,
            "name": shard.name,
            "kind": shard.kind,
            "train_examples": shard.train_examples,
            "validation_examples": shard.validation_examples,
            "sample_shape": list(shard.sample_shape),
            "target_shape": list(shard.target_shape),
            "description": shard.description,
        }
        for shard in shards
    ]
    if rows:
        session.execute(insert(tables.Shard), rows)


def envoys(session: Session) -> list[EnvoyRecord]:
    """Return every envoy that has attended, by name."""
    return [
        EnvoyRecord(site=SiteName(row.site), software=row.software, last_seen_at=row.last_seen_at)
        for row in session.scalars(select(tables.Envoy).order_by(tables.Envoy.site))
    ]


def offers(session: Session, online: Collection[str]) -> list[Site]:
    """Return every known site with what it offers, by name; `online` says who has a session now."""
    shards: dict[str, list[Shard]] = {}
    for row in session.scalars(select(tables.Shard).order_by(tables.Shard.site, tables.Shard.name)):
        shards.setdefault(row.site, []).append(
            Shard(
                name=ShardName(row.name),
                kind=row.kind,
                train_examples=row.train_examples,
                validation_examples=row.validation_examples,
                sample_shape=tuple(row.sample_shape),
                target_shape=tuple(row.target_shape),
                description=row.description,
            )
        )
    return [
        Site(name=SiteName(site), online=site in online, shards=tuple(shards.get(site, ())))
        for site in session.scalars(select(tables.Envoy.site).order_by(tables.Envoy.site))
    ]


def ask(session: Session, experiment: str, matches: Iterable[Match], at: float) -> list[SiteName]:
    """Note that these sites are asked to take part; return those that had not been asked before."""
    fresh = []
    for found in matches:
        if session.get(tables.Participation, (experiment, found.site)) is not None:
            continue
        session.add(
            tables.Participation(
                experiment=experiment,
                site=found.site,
                answer=ASKED,
                reason="",
                shards=list(found.shards),
                train_examples=found.train_examples,
                validation_examples=found.validation_examples,
                changed_at=at,
            )
        )
        text = f"{found.site} is asked to take part with {found.train_examples} examples"
        events.append(session, pb.Event(experiment=experiment, site=found.site, at=at, kind="assignment", text=text))
        fresh.append(found.site)
    return fresh


def answer(session: Session, experiment: str, site: str, *, to: str, reason: str, at: float) -> bool:
    """Store a site's answer or what became of it; return whether that changed anything.

    Raises:
        NotFoundError: the site was not asked.
    """
    row = session.get(tables.Participation, (experiment, site))
    if row is None:
        raise NotFoundError(f"site {site} was not asked to take part in experiment {experiment[:80]!r}")
    if row.answer == to or to not in _NEXT[row.answer]:
        return False
    row.answer, row.reason, row.changed_at = to, reason, at
    text = f"{site}: {to}" + (f", {reason}" if reason else "")
    kind = "assignment" if to in (PENDING, ACCEPTED, REFUSED) else "site"
    events.append(session, pb.Event(experiment=experiment, site=site, at=at, kind=kind, text=text))
    return True


def participations(session: Session, experiment: str) -> list[ParticipationRecord]:
    """Return each site asked and its answer, by name."""
    query = (
        select(tables.Participation)
        .where(tables.Participation.experiment == experiment)
        .order_by(tables.Participation.site)
    )
    return [_participation(row) for row in session.scalars(query)]


def participation(session: Session, experiment: str, site: str) -> ParticipationRecord | None:
    """Return the site's part in the experiment; None if it was not asked."""
    row = session.get(tables.Participation, (experiment, site))
    return None if row is None else _participation(row)


def accepted_by_experiment(session: Session, experiments: Collection[str]) -> dict[str, list[SiteName]]:
    """Return, for each experiment, the sites that accepted it, by name; those lost or finished since included."""
    query = (
        select(tables.Participation.experiment, tables.Participation.site)
        .where(
            tables.Participation.experiment.in_(list(experiments)),
            tables.Participation.answer.in_((ACCEPTED, LOST, FINISHED)),
        )
        .order_by(tables.Participation.site)
    )
    found: dict[str, list[SiteName]] = {}
    for experiment, site in session.execute(query):
        found.setdefault(experiment, []).append(SiteName(site))
    return found


def running_by_site(session: Session, states: Collection[str]) -> dict[str, int]:
    """Return in how many experiments of these states each site takes part now."""
    query = (
        select(tables.Participation.site, func.count())
        .join(tables.Experiment, tables.Experiment.id == tables.Participation.experiment)
        .where(tables.Participation.answer == ACCEPTED, tables.Experiment.state.in_(list(states)))
        .group_by(tables.Participation.site)
    )
    return {site: number for site, number in session.execute(query)}


def note_quarantine(session: Session, experiment: str, report: pb.RoundReport, actor: str, at: float) -> None:
    """Take over from a round's report who is in quarantine, with an event and an audit record for whoever is new.

    Args:
        session: open transaction.
        experiment: its id.
        report: the latest round's.
        actor: SPIFFE id of the aggregator.
        at: present time, Unix seconds.
    """
    held = {row.site: row for row in report.quarantined}
    query = select(tables.Participation).where(tables.Participation.experiment == experiment)
    if not held:
        query = query.where(tables.Participation.quarantined_since > 0)
    for row in session.scalars(query):
        found = held.get(row.site)
        if found is not None and found.releases < row.releases:
            continue  # the aggregator had not obeyed the release when it committed this round
        since, reason = (found.since_round, found.reason) if found is not None else (0, "")
        if since and since != row.quarantined_since:
            text = f"{row.site} is in quarantine since round {since}: {reason}"
            events.append(session, pb.Event(experiment=experiment, site=row.site, at=at, kind="site", text=text))
            subject = f"{experiment}/{row.site}"
            events.audit(
                session, at=at, actor=actor, action="QuarantineSite", admitted=True, subject=subject, detail=reason
            )
        row.quarantined_since, row.quarantine_reason = since, reason


def release(session: Session, experiment: str, site: str, *, actor: str, reason: str, at: float) -> int:
    """Let a site out of quarantine; return the round that had quarantined it, 0 if it was not in quarantine.

    Raises:
        NotFoundError: the site takes no part in the experiment.
    """
    row = session.get(tables.Participation, (experiment, site))
    if row is None:
        raise NotFoundError(
            f"site {site[:80]!r} takes no part in experiment {experiment[:80]!r}; `federation show` lists those that do"
        )
    since = row.quarantined_since
    if not since:
        return 0
    row.quarantined_since, row.quarantine_reason, row.releases = 0, "", row.releases + 1
    text = f"{site} is released from quarantine" + (f": {reason}" if reason else "")
    events.append(session, pb.Event(experiment=experiment, site=site, at=at, kind="site", text=text))
    subject = f"{experiment}/{site}"
    events.audit(session, at=at, actor=actor, action="ReleaseSite", admitted=True, subject=subject, detail=reason)
    return since


def quarantined_in(session: Session, states: Collection[str], *, user: str | None = None) -> dict[str, list[str]]:
    """Return, for each site, the experiments of these states that have it in quarantine; a user's own, if given."""
    query = (
        select(tables.Participation.site, tables.Participation.experiment)
        .join(tables.Experiment, tables.Experiment.id == tables.Participation.experiment)
        .where(tables.Participation.quarantined_since > 0, tables.Experiment.state.in_(list(states)))
        .order_by(tables.Participation.experiment)
    )
    if user is not None:
        query = query.where(tables.Experiment.submitted_by == user)
    found: dict[str, list[str]] = {}
    for site, experiment in session.execute(query):
        found.setdefault(site, []).append(experiment)
    return found


def _participation(row: tables.Participation) -> ParticipationRecord:
    return ParticipationRecord(
        experiment=ExperimentId(row.experiment),
        site=SiteName(row.site),
        answer=row.answer,
        reason=row.reason,
        shards=tuple(row.shards),
        train_examples=row.train_examples,
        validation_examples=row.validation_examples,
        quarantined_since=row.quarantined_since,
        quarantine_reason=row.quarantine_reason,
        releases=row.releases,
    )
