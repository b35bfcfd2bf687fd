"""Reports in quick succession are stored together, in order, and never after a failure."""

from __future__ import annotations

import asyncio

import pytest

from director.bursts import BURST_S, MAX_WAITING, ReportBurst
from federation.errors import StaleRoundError
from federation.testing.clock import FakeClock
from federation.v1 import director_pb2 as pb


class Store:
    """Remembers the sequences of each transaction; fails when told to."""

    def __init__(self) -> None:
        self.transactions: list[list[int]] = []
        self.error: Exception | None = None
        self.stored = asyncio.Event()

    async def __call__(self, told: list[pb.RoundReport | pb.Event]) -> None:
        if self.error is not None:
            raise self.error
        self.transactions.append([each.sequence for each in told])
        self.stored.set()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> Store:
    return Store()


async def add(burst: ReportBurst, *sequences: int) -> None:
    for sequence in sequences:
        await burst.add(pb.RoundReport(sequence=sequence))


async def test_a_report_after_a_quiet_time_is_stored_at_once(store: Store, clock: FakeClock) -> None:
    burst = ReportBurst(store, clock)
    await add(burst, 1)
    clock.advance(BURST_S)
    await add(burst, 2)
    assert store.transactions == [[1], [2]]


async def test_reports_of_a_burst_wait_for_its_end_and_are_stored_together(store: Store, clock: FakeClock) -> None:
    burst = ReportBurst(store, clock)
    running = asyncio.create_task(burst.run())
    await add(burst, 1, 2, 3)
    assert store.transactions == [[1]]
    store.stored.clear()
    clock.advance(BURST_S)
    await store.stored.wait()
    assert store.transactions == [[1], [2, 3]]
    running.cancel()
    await asyncio.wait({running})


async def test_a_burst_is_stored_early_when_it_is_long(store: Store, clock: FakeClock) -> None:
    burst = ReportBurst(store, clock)
    await add(burst, *range(MAX_WAITING + 1))
    assert [len(rows) for rows in store.transactions] == [1, MAX_WAITING]


async def test_what_follows_from_reports_finds_them_stored(store: Store, clock: FakeClock) -> None:
    burst = ReportBurst(store, clock)
    await add(burst, 1, 2)
    await burst.flush()
    assert store.transactions == [[1], [2]]


async def test_after_a_failure_nothing_later_is_stored(store: Store, clock: FakeClock) -> None:
    burst = ReportBurst(store, clock)
    await add(burst, 1, 2)
    store.error = StaleRoundError("a newer epoch runs")
    with pytest.raises(StaleRoundError):
        await burst.flush()
    store.error = None
    await add(burst, 3)
    await burst.flush()
    assert store.transactions == [[1]]


async def test_a_failure_at_the_end_of_a_burst_ends_the_run(store: Store, clock: FakeClock) -> None:
    burst = ReportBurst(store, clock)
    running = asyncio.create_task(burst.run())
    await add(burst, 1, 2)
    store.error = StaleRoundError("a newer epoch runs")
    clock.advance(BURST_S)
    with pytest.raises(StaleRoundError):
        await running


async def test_a_closed_burst_leaves_no_timer(store: Store, clock: FakeClock) -> None:
    burst = ReportBurst(store, clock)
    await add(burst, 1, 2)
    burst.close()
    assert clock.waiting == 0
