"""How an aggregator dials its director again."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

from federation.aggregator.supervision import DirectorSupervision
from federation.errors import TransportError
from federation.names import Epoch, ExperimentId
from federation.runtime.orphans import Lease
from federation.testing.clock import FakeClock


async def test_a_renewed_certificate_ends_the_wait_for_the_director_that_renewed_it() -> None:
    clock, dialled = FakeClock(), asyncio.Queue[float]()

    def connect() -> NoReturn:
        dialled.put_nowait(clock.monotonic())
        raise TransportError("nobody is there")

    nobody: Any = None
    supervision = DirectorSupervision(
        connect,
        experiment=ExperimentId("trial-00000001"),
        epoch=Epoch(1),
        reports=lambda _: iter(()),
        last_sequence=lambda: 0,
        orders=nobody,
        lease=Lease(60, FakeClock()),
        clock=clock,
    )
    running = asyncio.create_task(supervision.run("127.0.0.1:1", ""))
    for _ in range(8):
        await dialled.get()
        await clock.until_waiting()
        clock.advance(10)  # the longest delay
    waits_since = await dialled.get()
    await clock.until_waiting()
    supervision.redial()
    assert await dialled.get() == waits_since
    await clock.until_waiting()
    clock.advance(0.1)  # the first delay, once more
    await dialled.get()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
