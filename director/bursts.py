"""Round reports and progress on their way into the database: what comes in quick succession is one transaction.

Tiny rounds take some milliseconds, and so does a transaction; one each, or ten for the progress of a long round, would
make the director the busiest process of the federation. Rules, in order:

1. The first after a quiet time is stored at once. Those that follow within `BURST_S` wait for its end, or until they
   are `MAX_WAITING`, and are stored together.
2. Whatever follows from them (another event, a status, the end) first has `flush` store those that wait.
3. The order is kept, and after a failure nothing is stored any more: the aggregator reports again what is missing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from federation.runtime.clock import Cancellable, Clock
    from federation.v1 import director_pb2 as pb

    Told = pb.RoundReport | pb.Event

BURST_S = 0.2
"""Seconds a report may wait: less than a person who watches would notice."""
MAX_WAITING = 64


class ReportBurst:
    """What one session told that waits to be stored. Lives on the event loop.

    Args:
        store: stores reports and events in order, and acknowledges reports once that is committed.
        clock: ends a burst.
    """

    def __init__(self, store: Callable[[list[Told]], Awaitable[None]], clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: list[Told] = []
        self._storing = asyncio.Lock()
        self._due = asyncio.Event()
        self._timer: Cancellable | None = None
        self._has_failed = False

    async def add(self, told: Told) -> None:
        """Take a report or an event in.

        Raises:
            Exception: what `store` raised.
        """
        self._waiting.append(told)
        if self._timer is None:
            self._timer = self._clock.timer(BURST_S, self._end_burst)
            await self.flush()
        elif len(self._waiting) >= MAX_WAITING:
            await self.flush()

    async def flush(self) -> None:
        """Return once everything taken in so far is stored.

        Raises:
            Exception: what `store` raised.
        """
        async with self._storing:
            waiting, self._waiting = self._waiting, []
            if not waiting or self._has_failed:
                return
            self._has_failed = True  # unless it works; being cancelled is a failure too
            await self._store(waiting)
            self._has_failed = False

    async def run(self) -> None:
        """Store what waits at the end of each burst, until cancelled.

        Raises:
            Exception: what `store` raised.
        """
        while True:
            await self._due.wait()
            self._due.clear()
            await self.flush()

    def close(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_burst(self) -> None:
        self._timer = None
        if self._waiting:
            # What comes next belongs to the same burst of work, and waits as well.
            self._timer = self._clock.timer(BURST_S, self._end_burst)
            self._due.set()
