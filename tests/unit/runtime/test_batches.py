"""Batches worked on in a thread, with work that the test lets go on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from federation.runtime.batches import BATCH_BYTES, Batches

HALF, QUARTER = BATCH_BYTES // 2, BATCH_BYTES // 4


class Work:
    """Notes its batches; waits in each for `go` if it is told to."""

    def __init__(self, *, waits=False, fails_at=None):
        self.batches = []
        self.begun = threading.Event()
        self.go = threading.Event()
        self._waits = waits
        self._fails_at = fails_at

    def __call__(self, batch):
        self.begun.set()
        if self._waits:
            assert self.go.wait(30)
        if self._fails_at in batch:
            raise ValueError(f"item {self._fails_at} is bad")
        self.batches.append(list(batch))


async def test_items_are_worked_on_in_order_a_few_at_a_time_and_the_rest_at_the_end():
    work = Work()
    batches = Batches(work)
    for item in range(5):
        await batches.put(item, HALF)
    await batches.finish()
    assert work.batches == [[0, 1], [2, 3], [4]]


async def test_items_gather_while_a_batch_is_worked_on_and_a_full_one_waits():
    work = Work(waits=True)
    batches = Batches(work)
    for item in range(3):
        await batches.put(item, HALF)
    await asyncio.to_thread(work.begun.wait, 30)
    waiting = asyncio.create_task(batches.put(3, HALF))
    await asyncio.sleep(0)
    assert not waiting.done()
    work.go.set()
    await waiting
    await batches.finish()
    assert work.batches == [[0, 1], [2, 3]]


async def test_an_item_that_must_not_wait_goes_with_what_had_gathered():
    work = Work()
    batches = Batches(work)
    await batches.put(0, QUARTER)
    await batches.put(1, QUARTER, at_once=True)
    await batches.put(2, QUARTER)
    await batches.finish()
    assert work.batches == [[0, 1], [2]]


async def test_what_gathered_goes_at_once_when_nothing_more_is_to_be_waited_for():
    work = Work()
    batches = Batches(work)
    batches.hurry()
    await batches.put(0, QUARTER)
    await batches.put(1, QUARTER)
    batches.hurry()
    await asyncio.to_thread(work.begun.wait, 30)
    await batches.put(2, QUARTER)
    await batches.finish()
    assert work.batches == [[0, 1], [2]]


async def test_a_hurry_while_a_batch_is_worked_on_follows_it_and_loses_nothing():
    work = Work(waits=True)
    batches = Batches(work)
    for item in range(3):
        await batches.put(item, HALF)
    batches.hurry()
    full = asyncio.create_task(batches.put(3, HALF))
    await asyncio.sleep(0)
    work.go.set()
    await full
    await batches.put(4, HALF)
    await batches.finish()
    assert [item for batch in work.batches for item in batch] == [0, 1, 2, 3, 4]


async def test_a_hurry_after_a_failure_works_on_nothing_more():
    work = Work(waits=True, fails_at=1)
    batches = Batches(work)
    for item in range(3):
        await batches.put(item, HALF)
    batches.hurry()
    work.go.set()
    with pytest.raises(ValueError, match="item 1 is bad"):
        await batches.finish()
    batches.hurry()
    await batches.settle()
    assert work.batches == []


async def test_what_fails_is_raised_later_and_nothing_after_it_is_worked_on():
    work = Work(fails_at=1)
    batches = Batches(work)
    await batches.put(0, HALF)
    await batches.put(1, HALF)
    await batches.put(2, HALF)
    with pytest.raises(ValueError, match="item 1 is bad"):
        await batches.put(3, HALF)
    with pytest.raises(ValueError, match="item 1 is bad"):
        await batches.finish()
    await batches.settle()
    assert work.batches == []


async def test_whoever_is_cancelled_settles_and_every_item_was_worked_on():
    work = Work(waits=True)
    batches = Batches(work)

    async def feed():
        try:
            for item in range(4):
                await batches.put(item, HALF)
        finally:
            await batches.settle()

    task = asyncio.create_task(feed())
    await asyncio.to_thread(work.begun.wait, 30)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.batches == [[0, 1], [2, 3]]


async def test_settling_after_a_failure_raises_nothing():
    work = Work(fails_at=0)
    batches = Batches(work)
    await batches.put(0, BATCH_BYTES)
    await batches.settle()
    assert work.batches == []
