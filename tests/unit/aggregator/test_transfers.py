"""Files fetched from a director that goes away, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from federation.aggregator.transfers import Transfers
from federation.errors import TransportError
from federation.names import ExperimentId
from federation.runtime.orphans import Lease
from federation.testing.clock import FakeClock
from federation.v1 import director_pb2 as pb
from federation.wire.chunks import make_chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DATA = b"0123456789"


class Line:
    """Stands for the line to a director: it sends `sent` bytes a call, then is cut."""

    def __init__(self, sent: int) -> None:
        self.sent = sent
        self.cuts: asyncio.Queue[None] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def server_stream(self, _: str, request: Any) -> AsyncIterator[AsyncIterator[Any]]:
        yield self._replies(request.offset)

    async def _replies(self, offset: int) -> AsyncIterator[Any]:
        if self.sent:
            digest = hashlib.sha256(DATA).hexdigest()
            yield pb.DownloadArtifactReply(artifact=pb.Artifact(name="spec.json", bytes=len(DATA), digest=digest))
            yield pb.DownloadArtifactReply(chunk=make_chunk(offset, DATA[offset : offset + self.sent]))
        self.cuts.put_nowait(None)  # whoever waits for it goes on when the cut has been dealt with
        raise TransportError("the line was cut")


def fetching(line: Line, clock: FakeClock, lease: Lease, path: Path) -> asyncio.Task[None]:
    transfers = Transfers(lambda: line, ExperimentId("trial-00000001"), lease, clock)  # type: ignore[arg-type,return-value]
    return asyncio.create_task(transfers.fetch("spec.json", path))


@pytest.mark.parametrize("sent", [0, 4])
async def test_whose_director_is_gone_before_all_is_fetched_does_not_wait_for_it_for_ever(
    sent: int, tmp_path: Path
) -> None:
    clock = FakeClock()
    lease = Lease(600, clock)
    line = Line(sent)
    task = fetching(line, clock, lease, tmp_path / "spec.json")
    try:
        await clock.until_waiting()
        line.sent = 0
        clock.advance(599)
        assert not lease.is_expired
        clock.advance(1)
        assert lease.is_expired
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_slow_line_that_still_brings_something_is_a_director_that_is_there(tmp_path: Path) -> None:
    clock = FakeClock()
    lease = Lease(10, clock)
    line = Line(1)
    task = fetching(line, clock, lease, tmp_path / "spec.json")
    try:
        for _ in DATA[2:]:
            await line.cuts.get()
            clock.advance(9)
        assert not lease.is_expired
    finally:
        task.cancel()
        await asyncio.wait({task})
