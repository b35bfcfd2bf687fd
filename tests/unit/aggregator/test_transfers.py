"""Files fetched from a director that goes away, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from federation.aggregator.transfers import Transfers
from federation.errors import StorageError, TransportError
from federation.names import ExperimentId
from federation.runtime.orphans import Lease
from federation.testing.clock import FakeClock
from federation.v1 import director_pb2 as pb
from federation.v1 import tensors_pb2

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
            yield pb.DownloadArtifactReply(
                chunk=tensors_pb2.Chunk(offset=offset, data=DATA[offset : offset + self.sent])
            )
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


class FullStore:
    """Stands for a director without room for so many tries, and keeps what it takes after them."""

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self.taken = b""

    async def client_stream(self, _: str, requests: AsyncIterator[Any]) -> None:
        sent = b"".join([request.chunk.data async for request in requests])
        self.tries -= 1
        if self.tries >= 0:
            raise StorageError("the server's storage failed; its operator finds the reason in its log")
        self.taken = sent


async def test_results_that_the_director_has_no_room_for_wait_until_it_has(tmp_path: Path) -> None:
    clock = FakeClock()
    store, told = FullStore(3), list[str]()
    transfers = Transfers(lambda: store, ExperimentId("trial-00000001"), Lease(600, clock), clock)  # type: ignore[arg-type,return-value]
    (tmp_path / "last.safetensors").write_bytes(DATA)
    task = asyncio.create_task(transfers.upload("last.safetensors", tmp_path / "last.safetensors", 2, tell=told.append))
    for _ in range(3):
        await clock.until_waiting()
        clock.advance(10)
    await task
    assert store.taken == DATA
    assert told == [
        "the director does not take last.safetensors, and that is tried again: "
        "the server's storage failed; its operator finds the reason in its log"
    ]
