"""How an aggregator dials its director again."""

from __future__ import annotations

import asyncio
from typing import Any

from federation.aggregator.supervision import DirectorSupervision
from federation.names import Epoch, ExperimentId
from federation.runtime.orphans import Lease
from federation.testing.clock import FakeClock
from federation.testing.dialling import NobodyThere


async def test_a_renewed_certificate_ends_the_wait_for_the_director_that_renewed_it() -> None:
    clock = FakeClock()
    there = NobodyThere(clock)
    nobody: Any = None
    supervision = DirectorSupervision(
        there.dial,
        experiment=ExperimentId("trial-00000001"),
        epoch=Epoch(1),
        reports=lambda _: iter(()),
        last_sequence=lambda: 0,
        orders=nobody,
        lease=Lease(60, FakeClock()),
        clock=clock,
    )
    running = asyncio.create_task(supervision.run("127.0.0.1:1", ""))
    assert await there.wait_after(supervision.redial, longest_s=10, times=8) == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
