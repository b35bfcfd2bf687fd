"""How an envoy dials its director again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from envoy.attendance import Attendance, EpochFile
from federation.testing.clock import FakeClock
from federation.testing.dialling import QuietChannel, QuietStream
from federation.v1 import director_pb2 as pb
from federation.wire.versions import PROTOCOL

if TYPE_CHECKING:
    from pathlib import Path


def open_stream() -> QuietStream:
    welcome = pb.EnvoyWelcome(protocol=PROTOCOL.highest, director_epoch=1, now=1_800_000_000)
    return QuietStream(pb.AttendReply(welcome=welcome))


async def test_a_director_that_lets_an_envoy_in_and_drops_it_at_once_is_not_dialled_without_pause(
    tmp_path: Path,
) -> None:
    clock, streams = FakeClock(), list[QuietStream]()
    member: Any = SimpleNamespace(
        offers=pb.ShardOffers, running=list, standing=list, delivered=lambda _: None, assigned=None, withdrawn=None
    )

    def bidi(_: str) -> QuietStream:
        streams.append(open_stream())
        return streams[-1]

    attendance = Attendance(
        open_channel=QuietChannel,  # type: ignore[arg-type]
        make_stub=lambda _: SimpleNamespace(bidi=bidi),  # type: ignore[arg-type,return-value]
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
