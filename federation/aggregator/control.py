"""What may end an aggregator from outside, and what the director may tell it.

The experiment's own end, an order to stop, a signal, or a lease that has run out: the first of them wins, and what was
under way is cancelled. The journal makes that safe at any moment.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from federation.rounds.events import Finish

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from federation.aggregator.sessions import Bounds, Sessions
    from federation.names import SiteName
    from federation.runtime.orphans import Lease
    from federation.runtime.shutdown import Shutdown


class RevokedSerials:
    """Serial numbers that no longer count, as the director last said. Implements `transport.authority.Revocations`."""

    def __init__(self) -> None:
        self._serials: frozenset[int] = frozenset()
        self._subscribers: list[Callable[[], None]] = []

    def __contains__(self, serial: int) -> bool:
        return serial in self._serials

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` whenever the list changed; returns what ends the subscription."""
        self._subscribers.append(changed)
        return lambda: self._subscribers.remove(changed)

    def replace(self, serials: frozenset[int]) -> None:
        """Take a new list."""
        if serials != self._serials:
            self._serials = serials
            for changed in list(self._subscribers):
                changed()


class Control:
    """Implements `supervision.Orders`, and ends the process's work when it is time.

    Args:
        shutdown: the process's signals.
        lease: permission to go on without a director.
        revocations: where revoked serials go.
    """

    def __init__(self, shutdown: Shutdown, lease: Lease, revocations: RevokedSerials) -> None:
        self._shutdown = shutdown
        self._lease = lease
        self._revocations = revocations
        self._sessions: Sessions | None = None
        self._ordered: asyncio.Future[Finish] = asyncio.get_running_loop().create_future()

    def attach(self, sessions: Sessions) -> None:
        """Let rosters go to these sessions from now on."""
        self._sessions = sessions

    def roster(self, roster: Mapping[SiteName, Bounds]) -> None:
        """Take these sites, and no others."""
        if self._sessions is not None:
            self._sessions.set_roster(roster)

    def revoked(self, serials: frozenset[int]) -> None:
        """Take these certificates as revoked, and no others."""
        self._revocations.replace(serials)

    def stop(self, outcome: str, reason: str) -> None:
        """End now."""
        if not self._ordered.done():
            self._ordered.set_result(Finish(outcome or "superseded", reason, is_degraded=False))

    async def race(self, work: Coroutine[None, None, Finish]) -> Finish:
        """Return how `work` ended, or what ended it."""
        task = asyncio.create_task(work, name="aggregator/rounds")
        drained = asyncio.create_task(self._shutdown.draining.wait(), name="aggregator/drain")
        orphaned = asyncio.create_task(self._lease.expired(), name="aggregator/lease")
        watched: set[asyncio.Future[object]] = {task, self._ordered, drained, orphaned}  # type: ignore[arg-type]
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for other in (task, drained, orphaned):
                other.cancel()
            await asyncio.wait({task, drained, orphaned})
        if not task.cancelled():
            return task.result()
        if self._ordered.done():
            return self._ordered.result()
        if self._shutdown.draining.is_set():
            return Finish("drained", self._shutdown.reason, is_degraded=False)
        return Finish("orphaned", "the director did not come back in time", is_degraded=False)
