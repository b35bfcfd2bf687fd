"""How an envoy dials its director again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from envoy.attendance import Attendance, EpochFile
from federation.testing.clock import FakeClock
from federation.v1 import director_pb2 as pb
from federation.wire.versions import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation.runtime.clock import Cancellable


class Stream:
    """The envoy's end of a stream that welcomes and then says nothing, until it ends."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self._replies = [
            pb.AttendReply(welcome=pb.EnvoyWelcome(protocol=PROTOCOL.highest, director_epoch=1, now=1_800_000_000))
        ]

    async def write(self, request: pb.AttendRequest) -> None:
        await self.try_write(request)

    async def try_write(self, request: pb.AttendRequest) -> bool:
        return True

    async def read(self) -> pb.AttendReply | None:
        if self._replies:
            return self._replies.pop()
        await self.over.wait()
        return None

    def cancel(self) -> None:
        pass


class Channel:
    async def close(self) -> None:
        pass


class Delays(FakeClock):
    """Remembers for how long it was waited."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def timer(self, delay_s: float, callback: Callable[[], object]) -> Cancellable:
        self.asked.append(delay_s)
        return super().timer(delay_s, callback)


async def test_a_director_that_lets_an_envoy_in_and_drops_it_at_once_is_not_dialled_without_pause(
    tmp_path: Path,
) -> None:
    clock, streams = Delays(), list[Stream]()
    member: Any = SimpleNamespace(
        offers=pb.ShardOffers, running=list, standing=list, delivered=lambda _: None, assigned=None, withdrawn=None
    )

    def open_stream(_: str) -> Stream:
        streams.append(Stream())
        return streams[-1]

    attendance = Attendance(
        open_channel=Channel,  # type: ignore[arg-type]
        make_stub=lambda _: SimpleNamespace(bidi=open_stream),  # type: ignore[arg-type,return-value]
        member=member,
        epochs=EpochFile(tmp_path / "epoch.json"),
        clock=clock,
    )
    running = asyncio.create_task(attendance.run())

    async def have_a_session_of(seconds: float) -> None:
        await attendance.director()
        clock.advance(seconds)
        streams[-1].over.set()
        await clock.until_waiting()
        clock.advance(clock.asked[-1])

    for _ in range(7):
        await have_a_session_of(0.5)
    assert clock.asked[6] >= 6.4  # half of 0.2 s, doubled six times
    await have_a_session_of(60)
    assert clock.asked[7] <= 0.2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
