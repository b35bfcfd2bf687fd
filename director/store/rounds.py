"""Committed rounds with each site's contribution: a projection of the aggregator's journal.

A round is keyed by (experiment, journal sequence): storing it twice is harmless, so that an aggregator can report again
whatever it is not sure of. What is stored is given back as it came.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from director.store import events, tables
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message
    from sqlalchemy.orm import Session

_OF_ROUND = ("experiment", "quarantined")
"""Columns that are not fields of the message, or not as they are."""
_ROUND_MAPS = ("phase_seconds", "train_metrics", "metrics", "algorithm_scalars", "unevaluated")
_CONTRIBUTION_MAPS = ("train_metrics", "metrics", "scores")
_QUARANTINE = ("site", "since_round", "releases", "reason")


def store(session: Session, experiment: str, reports: Sequence[pb.RoundReport], at: float) -> int:
    """Store rounds and their contributions, each with an event; return how many were not there already.

    Args:
        session: open transaction.
        experiment: its id.
        reports: in the order of their sequences.
        at: present time, Unix seconds.
    """
    new = _missing(session, experiment, reports)
    if not new:
        return 0
    connection = session.connection()
    connection.execute(
        insert(tables.core(tables.Round)),
        [
            {
                "experiment": experiment,
                "quarantined": [[getattr(held, name) for name in _QUARANTINE] for held in row.quarantined],
                **_columns(row, tables.Round, _ROUND_MAPS, _OF_ROUND),
            }
            for row in new
        ],
    )
    rows = [
        {
            "experiment": experiment,
            "sequence": report.sequence,
            **_columns(part, tables.Contribution, _CONTRIBUTION_MAPS, ("experiment", "sequence")),
        }
        for report in new
        for part in report.contributions
    ]
    if rows:
        connection.execute(insert(tables.core(tables.Contribution)), rows)
    last = max(report.round for report in new)
    session.execute(
        update(tables.Experiment)
        .where(tables.Experiment.id == experiment, tables.Experiment.rounds_done < last)
        .values(rounds_done=last)
        .execution_options(synchronize_session=False)
    )
    events.prune_progress(session, experiment)
    events.append_all(
        session,
        experiment,
        [pb.Event(experiment=experiment, at=at, kind="round", text=_sentence(row), report=row) for row in new],
    )
    return len(new)


def _missing(session: Session, experiment: str, reports: Sequence[pb.RoundReport]) -> list[pb.RoundReport]:
    if not reports:
        return []
    table = tables.Round
    sequences = [report.sequence for report in reports]
    query = select(table.sequence).where(
        table.experiment == experiment, table.sequence.between(min(sequences), max(sequences))
    )
    known = set(session.scalars(query))
    missing = []
    for report in reports:
        if report.sequence not in known:
            known.add(report.sequence)
            missing.append(report)
    return missing


def last_sequence(session: Session, experiment: str) -> int:
    """Return the highest journal sequence stored; 0 if none."""
    return session.scalar(select(func.max(tables.Round.sequence)).where(tables.Round.experiment == experiment)) or 0


def reports(
    session: Session, experiment: str, *, after_round: int = 0, limit: int | None = None
) -> list[pb.RoundReport]:
    """Return committed rounds after a round, in order, at most `limit`."""
    query = (
        select(tables.Round)
        .where(tables.Round.experiment == experiment, tables.Round.round > after_round)
        .order_by(tables.Round.sequence)
        .limit(limit)
    )
    rows = list(session.scalars(query))
    if not rows:
        return []
    parts: dict[int, list[pb.Contribution]] = {row.sequence: [] for row in rows}
    these = (
        select(tables.Contribution)
        .where(
            tables.Contribution.experiment == experiment,
            tables.Contribution.sequence.between(rows[0].sequence, rows[-1].sequence),
        )
        .order_by(tables.Contribution.site)
    )
    for part in session.scalars(these):
        message = pb.Contribution()
        _fill(message, part, _CONTRIBUTION_MAPS, ("experiment", "sequence"))
        parts[part.sequence].append(message)
    found = []
    for row in rows:
        report = pb.RoundReport(contributions=parts[row.sequence])
        _fill(report, row, _ROUND_MAPS, _OF_ROUND)
        report.quarantined.extend(
            pb.QuarantinedSite(**dict(zip(_QUARANTINE, held, strict=True))) for held in row.quarantined
        )
        found.append(report)
    return found


@cache
def _names(table: type[tables.Table], without: tuple[str, ...]) -> list[str]:
    return [column.name for column in table.__table__.columns if column.name not in without]


def _columns(
    message: Message, table: type[tables.Table], maps: Iterable[str], without: tuple[str, ...]
) -> dict[str, Any]:
    # Columns are named as the message's fields, so that neither can gain one without the other noticing.
    return {
        name: dict(getattr(message, name)) if name in maps else getattr(message, name)
        for name in _names(table, without)
    }


def _fill(message: Message, row: tables.Table, maps: Iterable[str], without: tuple[str, ...]) -> None:
    for name in _names(type(row), without):
        if name in maps:
            getattr(message, name).update(getattr(row, name))
        else:
            setattr(message, name, getattr(row, name))


def _sentence(report: pb.RoundReport) -> str:
    counted = sum(1 for part in report.contributions if part.outcome == "counted")
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(report.metrics.items()))
    text = f"round {report.round}: {counted} of {len(report.contributions)} sites counted"
    return f"{text}, {metrics}" if metrics else text
