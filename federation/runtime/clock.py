"""Time as an argument: nothing else of ours asks the machine what time it is, so tests move it as they like.

`federation.testing.clock.FakeClock` is the other implementation.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


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


async def pause(clock: Clock, delay_s: float, *news: Coroutine[Any, Any, object]) -> bool:
    """Wait `delay_s` seconds, or until there is news: for the backoff of a repetition only, since nothing is polled.

    Args:
        clock: times it.
        delay_s: longest wait, seconds.
        news: waits for what would make a repetition worth while at once; those not over by then are cancelled.

    Returns:
        Whether there was news.
    """
    passed = asyncio.Event()
    timer = clock.timer(delay_s, passed.set)
    waits = [asyncio.create_task(each, name="pause") for each in (*news, passed.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        came = [wait for wait in waits[:-1] if wait.done()]
        for wait in came:
            wait.result()
        return bool(came)
    finally:
        timer.cancel()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
