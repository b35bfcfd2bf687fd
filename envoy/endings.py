"""What the end of a collaborator's process means. Pure: how it ended in, what to do out.

1. A record ``finished`` or ``failed`` is the collaborator's own last word: the participation is over. So it is with
   ``superseded``: another collaborator of this site took over, and two would take turns for ever.
2. ``stopped`` on our request: it is at rest, and the next start of the envoy goes on with it.
3. Anything else is a crash: it is started again, after a growing delay, so many times in a row; a round done in between
   makes the count start anew. Then the participation has failed with ``CollaboratorDied``.
4. One that ended because its disk is full is started again as long as it takes, and is no crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation.runtime.records import ExitRecord

FINISHED = "finished"
FAILED = "failed"
SUPERSEDED = "superseded"
DIED = "CollaboratorDied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """The participation ended with `outcome` (``finished`` or ``failed``)."""

    outcome: str
    error_class: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AtRest:
    """It stopped because we asked."""


@dataclass(frozen=True, slots=True)
class Again:
    """It is to be started again."""


Ending = Over | AtRest | Again


def judge(
    record: ExitRecord | None, how: str, *, asked: bool, crashes: int, max_restarts: int, is_disk_full: bool = False
) -> Ending:
    """Return what the end of a collaborator means.

    Args:
        record: what it wrote itself; None if it could not.
        how: how it ended, for people.
        asked: we had asked it to stop.
        crashes: crashes in a row before this end.
        max_restarts: how many of them are mended by starting again.
        is_disk_full: it ended for want of room.
    """
    if record is not None and record.outcome in (FINISHED, FAILED):
        return Over(outcome=record.outcome, error_class=record.error_class, reason=record.reason)
    if record is not None and record.outcome == SUPERSEDED:
        return Over(outcome=FAILED, error_class=record.error_class, reason=record.reason)
    if asked:
        return AtRest()
    if crashes >= max_restarts and not is_disk_full:
        return Over(
            outcome=FAILED, error_class=DIED, reason=f"the collaborator ended {crashes + 1} times in a row: {how}"
        )
    return Again()
