"""Committed rounds with each site's contribution: a projection of the aggregator's journal.

A round is keyed by (experiment, journal sequence): storing it twice is harmless, so that an aggregator can report again
whatever it is not sure of. What is stored is given back as it came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from director.store import events, tables
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message
    from sqlalchemy.orm import Session

_ROUND_MAPS = ("phase_seconds", "train_metrics", "metrics")
_CONTRIBUTION_MAPS = ("train_metrics", "metrics")


def store(session: Session, experiment: str, report: pb.RoundReport, at: float) -> bool:
    """Store a round and its contributions, with an event; return False if it was there already."""
    if session.get(tables.Round, (experiment, report.sequence)) is not None:
        return False
    session.execute(
        insert(tables.Round).values(
            experiment=experiment, **_columns(report, tables.Round, _ROUND_MAPS, without=("experiment",))
        )
    )
    rows = [
        {
            "experiment": experiment,
            "sequence": report.sequence,
            **_columns(part, tables.Contribution, _CONTRIBUTION_MAPS, without=("experiment", "sequence")),
        }
        for part in report.contributions
    ]
    if rows:
        session.execute(insert(tables.Contribution), rows)
    session.execute(
        update(tables.Experiment)
        .where(tables.Experiment.id == experiment, tables.Experiment.rounds_done < report.round)
        .values(rounds_done=report.round)
    )
    events.prune_progress(session, experiment)
    events.append(session, pb.Event(experiment=experiment, at=at, kind="round", text=_sentence(report), report=report))
    return True


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
        _fill(message, part, _CONTRIBUTION_MAPS, without=("experiment", "sequence"))
        parts[part.sequence].append(message)
    found = []
    for row in rows:
        report = pb.RoundReport(contributions=parts[row.sequence])
        _fill(report, row, _ROUND_MAPS, without=("experiment",))
        found.append(report)
    return found


def _names(table: type[tables.Table], without: Iterable[str]) -> list[str]:
    return [column.name for column in table.__table__.columns if column.name not in without]


def _columns(
    message: Message, table: type[tables.Table], maps: Iterable[str], *, without: Iterable[str]
) -> dict[str, Any]:
    # Columns are named as the message's fields, so that neither can gain one without the other noticing.
    return {
        name: dict(getattr(message, name)) if name in maps else getattr(message, name)
        for name in _names(table, without)
    }


def _fill(message: Message, row: tables.Table, maps: Iterable[str], *, without: Iterable[str]) -> None:
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
