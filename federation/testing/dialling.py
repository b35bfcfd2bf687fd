"""What a test needs of something that dials again: streams that end when it says so, and a line that nobody answers.

Nothing here is a server; `scripted_sites` and `aggregators` have real ones.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

from federation.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.testing.clock import FakeClock


class QuietStream:
    """One end of a stream of both directions: it hears a welcome, and then nothing until it is over.

    Args:
        welcome: the first and only message.

    Attributes:
        over: set it, and the stream ends.
    """

    def __init__(self, welcome: Any) -> None:
        self.over = asyncio.Event()
        self._replies = [welcome]

    async def write(self, request: Any) -> None:
        """Say something."""
        await self.try_write(request)

    async def try_write(self, request: Any) -> bool:
        """Say something; returns whether it could be said, which it always can."""
        return True

    async def read(self) -> Any:
        """Return the next message; None once the stream is over."""
        if self._replies:
            return self._replies.pop()
        await self.over.wait()
        return None

    def cancel(self) -> None:
        """Give it up."""


class QuietChannel:
    """A channel that there is nothing to close of."""

    async def close(self) -> None:
        """Close it."""


class NobodyThere:
    """Dials, and nobody answers.

    Args:
        clock: whose delays are between two calls.
    """

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._dialled: asyncio.Queue[float] = asyncio.Queue()

    def dial(self) -> NoReturn:
        """Dial once.

        Raises:
            TransportError: always.
        """
        self._dialled.put_nowait(self._clock.monotonic())
        raise TransportError("nobody is there")

    async def wait_after(self, news: Callable[[], object], *, longest_s: float, times: int = 10) -> float:
        """Return for how long it was still waited when there was news after many calls in vain, seconds.

        Returns at all only if delays begin anew after that.

        Args:
            news: what should end the wait.
            longest_s: the longest delay there is, seconds.
            times: calls after which delays are that long.
        """
        for _ in range(times):
            await self._next_call(longest_s)
        waits_since = await self._dialled.get()
        await self._clock.until_waiting()
        news()
        wait = await self._next_call(0.1) - waits_since
        await self._dialled.get()
        return wait

    async def _next_call(self, then_s: float) -> float:
        """Return when it was dialled, and let so much time pass after it."""
        moment = await self._dialled.get()
        await self._clock.until_waiting()
        self._clock.advance(then_s)
        return moment
