"""One director per database: a lease that is taken, kept and given up by compare-and-set.

Rules, in order:

1. Taking the lease raises its epoch; envoys refuse a director with a lower epoch than they have seen.
2. While a lease runs, nobody else may take it, except over a holder the taker knows to be dead (same machine, see
   `director.leasing`), so that a director that was killed can be started again at once.
3. A holder that finds its lease taken must stop at once: somebody else decides now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import CursorResult, insert, update
from sqlalchemy.exc import IntegrityError

from director.store import tables
from federation.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

_ONLY_ROW = 1


def take(
    session: Session, *, holder: str, now: float, lasts_s: float, is_dead: Callable[[str], bool] = lambda _: False
) -> int:
    """Take the lease and return its epoch, from 1.

    Args:
        session: open transaction.
        holder: who takes it, as text that `is_dead` understands.
        now: Unix time, seconds.
        lasts_s: seconds until it runs out unless it is kept.
        is_dead: whether the present holder is known to be dead.

    Raises:
        ConflictError: another director holds it.
    """
    row = session.get(tables.Lease, _ONLY_ROW)
    if row is None:
        try:
            with session.begin_nested():
                session.execute(
                    insert(tables.Lease).values(id=_ONLY_ROW, holder=holder, epoch=1, expires_at=now + lasts_s)
                )
        except IntegrityError as error:
            raise ConflictError("another director took the lease of this database at the same moment") from error
        return 1
    if row.expires_at > now and not is_dead(row.holder):
        raise ConflictError(
            f"another director ({row.holder}) holds the lease of this database for {row.expires_at - now:.0f} more "
            "seconds: stop it, or give this one a database of its own"
        )
    taken = row.epoch + 1  # read before the update, which changes the row in the session too
    if not _set(session, row.epoch, epoch=taken, holder=holder, expires_at=now + lasts_s):
        raise ConflictError("another director took the lease of this database at the same moment")
    return taken


def keep(session: Session, *, epoch: int, now: float, lasts_s: float) -> None:
    """Prolong the lease.

    Raises:
        ConflictError: somebody else has taken it.
    """
    if not _set(session, epoch, expires_at=now + lasts_s):
        raise ConflictError(f"the director's lease (epoch {epoch}) was taken by another director")


def give_up(session: Session, *, epoch: int) -> None:
    """End the lease, if it is still ours, so that the next director need not wait."""
    _set(session, epoch, expires_at=0.0)


def _set(session: Session, held: int, **values: Any) -> bool:
    result = session.execute(
        update(tables.Lease).where(tables.Lease.id == _ONLY_ROW, tables.Lease.epoch == held).values(**values)
    )
    return cast("CursorResult[Any]", result).rowcount == 1
