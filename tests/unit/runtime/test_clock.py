"""FakeClock behaves as a clock, and what is built on clocks: pause, leases."""

from __future__ import annotations

import asyncio

import pytest

from federation.runtime.clock import Clock, SystemClock, pause
from federation.runtime.orphans import Lease
from federation.testing.clock import FakeClock


def test_timers_fire_in_order_and_at_their_own_moment() -> None:
    clock = FakeClock(now=1000.0)
    fired: list[tuple[str, float]] = []
    clock.timer(5, lambda: fired.append(("late", clock.monotonic())))
    clock.timer(2, lambda: fired.append(("early", clock.now())))
    clock.advance(4.9)
    assert fired == [("early", 1002.0)]
    clock.advance(0.2)
    assert fired[1] == ("late", 5.0)
    assert clock.waiting == 0


def test_a_cancelled_timer_never_fires() -> None:
    clock = FakeClock()
    timer = clock.timer(1, lambda: pytest.fail("fired"))
    timer.cancel()
    clock.advance(2)


def test_a_timer_set_by_a_timer_fires_in_the_same_advance_if_it_falls_due() -> None:
    clock = FakeClock()
    fired: list[float] = []
    clock.timer(1, lambda: clock.timer(1, lambda: fired.append(clock.monotonic())))
    clock.advance(3)
    assert fired == [2.0]


async def test_the_system_clock_fires_timers_on_the_loop() -> None:
    clock: Clock = SystemClock()
    fired = asyncio.Event()
    before = clock.monotonic()
    clock.timer(0, fired.set)
    await fired.wait()
    assert clock.monotonic() >= before and clock.now() > 1_700_000_000


async def test_a_pause_lasts_as_long_as_it_says_and_leaves_no_timer_when_given_up() -> None:
    clock = FakeClock()
    waiting = asyncio.create_task(pause(clock, 10))
    await asyncio.sleep(0)
    clock.advance(9)
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(1)
    await waiting
    given_up = asyncio.create_task(pause(clock, 10))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert clock.waiting == 0


async def test_news_end_a_pause_and_leave_no_timer() -> None:
    clock, arrived, never = FakeClock(), asyncio.Event(), asyncio.Event()
    waiting = asyncio.create_task(pause(clock, 10, never.wait(), arrived.wait()))
    await clock.until_waiting()
    arrived.set()
    assert await waiting
    assert clock.waiting == 0


async def test_a_pause_without_news_says_so() -> None:
    clock = FakeClock()
    waiting = asyncio.create_task(pause(clock, 10, asyncio.Event().wait()))
    await clock.until_waiting()
    clock.advance(10)
    assert not await waiting


async def test_news_that_were_there_before_make_no_pause() -> None:
    arrived = asyncio.Event()
    arrived.set()
    assert await pause(FakeClock(), 10, arrived.wait())


async def test_a_lease_expires_only_after_the_whole_time_alone() -> None:
    clock = FakeClock()
    lease = Lease(60, clock)
    clock.advance(1000)
    assert not lease.is_expired
    lease.parent_lost()
    clock.advance(59)
    lease.parent_lost()
    lease.parent_found()
    lease.parent_lost()
    clock.advance(59)
    assert not lease.is_expired
    clock.advance(1)
    await lease.expired()
    assert lease.is_expired


def test_a_lease_of_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="orphan_s"):
        Lease(0, FakeClock())
