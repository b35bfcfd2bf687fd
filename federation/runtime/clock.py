"""Time as an argument: nothing else of ours asks the machine what time it is, so tests move it as they like.

`federation.testing.clock.FakeClock` is the other implementation.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Cancellable(Protocol):
    """A timer that has not fired yet."""

    def cancel(self) -> None:
        """Keep the callback from being called; nothing happens if it was called already."""


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Wall-clock time, Unix seconds: for records and certificates; may jump."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment, never going back: for durations and deadlines."""

    def timer(self, delay_s: float, callback: Callable[[], object]) -> Cancellable:
        """Call `callback` once after `delay_s` seconds, from the event loop."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Wall-clock time, Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the machine started."""
        return time.monotonic()

    def timer(self, delay_s: float, callback: Callable[[], object]) -> Cancellable:
        """Call `callback` once after `delay_s` seconds, from the running event loop."""
        return asyncio.get_running_loop().call_later(delay_s, callback)


async def pause(clock: Clock, delay_s: float) -> None:
    """Wait `delay_s` seconds: for the backoff of a reconnection only, since nothing else of ours is polled."""
    passed = asyncio.Event()
    timer = clock.timer(delay_s, passed.set)
    try:
        await passed.wait()
    finally:
        timer.cancel()
