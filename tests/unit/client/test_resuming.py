"""Streams that go on after a cut, under a clock of the test's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from federation.client.resuming import PATIENCE_S, resumed
from federation.errors import NotFoundError, TransportError
from federation.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

CUT = TransportError("cut")


class Source:
    """Each attempt is a list: numbers are yielded, errors raised, a string ``"7 s"`` lets that time pass."""

    def __init__(self, *attempts: list[object], clock: FakeClock | None = None) -> None:
        self.attempts = list(attempts)
        self.clock = clock or FakeClock()
        self.away: list[TransportError] = []
        self.closed = 0

    async def attempt(self) -> AsyncGenerator[int, None]:
        try:
            for step in self.attempts.pop(0):
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, str):
                    self.clock.advance(float(step.removesuffix(" s")))
                else:
                    yield step  # type: ignore[misc]
        finally:
            self.closed += 1

    async def collect(self) -> list[int]:
        """Return what comes; every pause passes at once, by the clock."""
        got: list[int] = []

        async def read() -> None:
            got.extend([item async for item in resumed(self.attempt, clock=self.clock, away=self.away.append)])

        reading = asyncio.create_task(read())
        while not reading.done():
            waiting = asyncio.create_task(self.clock.until_waiting())
            await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not reading.done():
                self.clock.advance(self.clock.asked[-1])
        await reading
        return got


async def test_a_stream_goes_on_after_cuts_and_ends_as_it_ends() -> None:
    source = Source([1, 2, CUT], [CUT], [3, CUT], [4])
    assert await source.collect() == [1, 2, 3, 4]
    assert (source.attempts, source.closed) == ([], 4)


async def test_who_is_away_is_told_once_and_once_more_the_next_time() -> None:
    source = Source([CUT], [CUT], [1, CUT], [CUT], [CUT], [2])
    assert await source.collect() == [1, 2]
    assert source.away == [CUT, CUT]


async def test_pauses_double_up_to_a_bound_and_begin_anew_after_something_came() -> None:
    source = Source(*[[CUT] for _ in range(8)], [1, CUT], [2])
    await source.collect()
    assert source.clock.asked == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 0.2])


async def test_who_is_away_for_too_long_is_given_up() -> None:
    source = Source([1, CUT], *[[CUT] for _ in range(100)])
    with pytest.raises(TransportError):
        await source.collect()
    assert sum(source.clock.asked) >= PATIENCE_S > sum(source.clock.asked[:-1])
    assert len(source.away) == 1


async def test_a_quiet_stream_that_stood_between_its_cuts_is_never_given_up() -> None:
    quiet: list[list[object]] = [["200 s", CUT] for _ in range(20)]
    source = Source(*quiet, [1])
    assert await source.collect() == [1]
    assert len(source.away) == 20


async def test_an_error_that_no_repetition_helps_ends_it_at_once() -> None:
    source = Source([1, NotFoundError("no such experiment")], [2])
    with pytest.raises(NotFoundError):
        await source.collect()
    assert (source.away, source.clock.asked) == ([], [])


async def test_an_attempt_left_half_way_is_closed() -> None:
    source = Source([1, 2])
    stream = resumed(source.attempt, clock=source.clock, away=source.away.append)
    assert await anext(stream) == 1
    await stream.aclose()
    assert source.closed == 1
