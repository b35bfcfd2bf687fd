"""A clock that moves only when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _Timer:
    """One waiting callback."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Implements `federation.runtime.clock.Clock`; `advance` is the passing of time.

    Args:
        now: wall-clock time to begin with, Unix seconds.
        monotonic: monotonic time to begin with, seconds.

    Attributes:
        asked: delays that were asked for so far, seconds, in their order.
    """

    def __init__(self, now: float = 1_800_000_000.0, monotonic: float = 0.0) -> None:
        self.asked: list[float] = []
        self._now = now
        self._monotonic = monotonic
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._has_new = asyncio.Event()

    def now(self) -> float:
        """Wall-clock time, Unix seconds."""
        return self._now

    def monotonic(self) -> float:
        """Monotonic time, seconds."""
        return self._monotonic

    def timer(self, delay_s: float, callback: Callable[[], object]) -> _Timer:
        """Call `callback` from the `advance` that passes the moment."""
        timer = _Timer(callback)
        self.asked.append(delay_s)
        heapq.heappush(self._timers, (self._monotonic + max(delay_s, 0.0), next(self._order), timer))
        self._has_new.set()
        return timer

    @property
    def waiting(self) -> int:
        """Number of timers that would still fire: lets a test see that something waits at all."""
        return sum(1 for _, _, timer in self._timers if timer.callback is not None)

    async def until_waiting(self) -> None:
        """Return once a timer would still fire: what is tested has come to where it waits."""
        while not self.waiting:
            self._has_new.clear()
            await self._has_new.wait()

    def advance(self, seconds: float) -> None:
        """Let time pass and fire what falls due, in order, each at its own moment."""
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self._move_to(due)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        self._move_to(end)

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone, as an administrator or a time server does; may be negative."""
        self._now += seconds

    def _move_to(self, monotonic: float) -> None:
        self._now += monotonic - self._monotonic
        self._monotonic = monotonic
