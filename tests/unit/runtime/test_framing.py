"""Frames of both kinds over a real socket pair, and every way a stranger may break them."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from federation.errors import MalformedMessageError
from federation.runtime.framing import MAX_FRAME_BYTES, BlockingFrames, open_frames
from federation.v1 import trainer_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

Order = trainer_pb2.TrainerOrder


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


async def test_what_one_side_sends_the_other_receives(pair: tuple[socket.socket, socket.socket]) -> None:
    stream, blocking = await open_frames(pair[0]), BlockingFrames(pair[1])
    order = Order(order=7, keep=trainer_pb2.KeepState(round=3, counted=True))
    await stream.send(order)
    assert await asyncio.to_thread(blocking.receive, Order) == order
    await asyncio.to_thread(blocking.send, Order())  # an empty message is a frame too
    assert await stream.receive(Order) == Order()
    await stream.aclose()
    assert await asyncio.to_thread(blocking.receive, Order) is None


async def test_the_end_between_two_frames_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    stream = await open_frames(pair[0])
    pair[1].close()
    assert await stream.receive(Order) is None
    await stream.aclose()


BROKEN = [
    pytest.param(struct.pack(">I", MAX_FRAME_BYTES + 1), "at most", id="announces too much"),
    pytest.param(struct.pack(">I", 10) + b"abc", "inside a frame", id="ends inside a body"),
    pytest.param(b"\0\0", "inside a frame", id="ends inside a length"),
    pytest.param(struct.pack(">I", 3) + b"\xff\xff\xff", "not a TrainerOrder", id="is no message"),
]


@pytest.mark.parametrize(("sent", "text"), BROKEN)
async def test_a_broken_frame_is_malformed_for_the_asynchronous_side(
    pair: tuple[socket.socket, socket.socket], sent: bytes, text: str
) -> None:
    stream = await open_frames(pair[0])
    pair[1].sendall(sent)
    pair[1].close()
    with pytest.raises(MalformedMessageError, match=text):
        await stream.receive(Order)
    await stream.aclose()


@pytest.mark.parametrize(("sent", "text"), BROKEN)
def test_a_broken_frame_is_malformed_for_the_blocking_side(
    pair: tuple[socket.socket, socket.socket], sent: bytes, text: str
) -> None:
    pair[1].sendall(sent)
    pair[1].close()
    with pytest.raises(MalformedMessageError, match=text):
        BlockingFrames(pair[0]).receive(Order)


def test_a_message_too_long_to_be_received_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    long = Order(prepare=trainer_pb2.PrepareTrainer(workspace="x" * (MAX_FRAME_BYTES + 1)))
    with pytest.raises(ValueError, match="longer than"):
        BlockingFrames(pair[0]).send(long)
