"""Events people watch, and the audit trail of what was admitted or refused.

Rules, in order:

1. Events are numbered by the database, strictly increasing; a watcher resumes after the last number it has seen.
2. Progress inside a round (kinds ``phase`` and ``update``) is news only while the round is open: once it is committed
   its report says more, and the progress is deleted, so that a million rounds do not become ten million rows.
3. The audit trail is never deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from director.store import tables
from director.store.database import touch
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

PROGRESS_KINDS = ("phase", "update")


def append(session: Session, event: pb.Event) -> None:
    """Append an event to its experiment's; its `sequence` is ignored, the database gives one."""
    append_all(session, event.experiment, [event])


def append_all(session: Session, experiment: str, new: Sequence[pb.Event]) -> None:
    """Append events of one experiment, in order."""
    if not new:
        return
    rows = []
    for event in new:
        body = pb.Event()
        body.CopyFrom(event)
        body.sequence = 0
        encoded = body.SerializeToString(deterministic=True)
        rows.append({"experiment": experiment, "at": event.at, "kind": event.kind, "body": encoded})
    session.connection().execute(insert(tables.core(tables.Event)), rows)
    touch(session, experiment)


def append_text(session: Session, experiment: str, *, kind: str, text: str, at: float) -> None:
    """Append an event that is only a sentence."""
    append(session, pb.Event(experiment=experiment, at=at, kind=kind, text=text))


def after(session: Session, experiment: str, cursor: int, limit: int) -> list[pb.Event]:
    """Return up to `limit` events of the experiment with a sequence above `cursor`, in order."""
    rows = session.execute(
        select(tables.Event.sequence, tables.Event.body)
        .where(tables.Event.experiment == experiment, tables.Event.sequence > cursor)
        .order_by(tables.Event.sequence)
        .limit(limit)
    )
    events = []
    for sequence, body in rows:
        event = pb.Event.FromString(body)
        event.sequence = sequence
        events.append(event)
    return events


def prune_progress(session: Session, experiment: str) -> None:
    """Delete the progress of rounds that are committed by now."""
    table = tables.Event
    # Pruned at every commit, so whatever there is came after the last round's report: nothing older is looked at.
    last = (
        select(table.sequence)
        .where(table.experiment == experiment, table.kind == "round")
        .order_by(table.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    session.execute(
        delete(table)
        .where(table.experiment == experiment, table.sequence > func.coalesce(last, 0), table.kind.in_(PROGRESS_KINDS))
        .execution_options(synchronize_session=False)
    )


def audit(
    session: Session, *, at: float, actor: str, action: str, admitted: bool, subject: str = "", detail: str = ""
) -> None:
    """Record a decision: who (SPIFFE id) wanted what of which subject, and whether it was admitted."""
    session.execute(
        insert(tables.Audit).values(
            at=at, actor=actor, action=action, admitted=admitted, subject=subject, detail=detail[:2000]
        )
    )
