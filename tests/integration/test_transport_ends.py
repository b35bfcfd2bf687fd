"""Calls that end early: cancelled, closed, refused half-way or superseded. Both sides learn of it, and why."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from federation.errors import (
    IdentityError,
    LimitError,
    TransportError,
)
from federation.names import Role
from federation.transport.channels import open_channel
from federation.transport.methods import Stub

from .calls import call, connect, ended


async def test_cancelling_a_call_ends_it_on_both_sides(lab: Any) -> None:
    stub = await connect(lab)
    async with stub.server_stream("Follow", lab.chunk()) as stream:
        assert await stream.read()
    await ended(lab)
    with pytest.raises(TransportError, match="ended on this side"):
        await stream.read()


async def test_a_reader_of_a_call_cancelled_by_another_task_gets_a_transport_error(lab: Any) -> None:
    stub = await connect(lab)
    stream = stub.server_stream("Follow", lab.chunk())
    assert await stream.read()
    reader = asyncio.create_task(stream.read())
    asyncio.get_running_loop().call_soon(stream.cancel)
    with pytest.raises(TransportError, match="ended on this side"):
        await reader
    await ended(lab)


async def test_a_cancelled_reader_is_cancelled_and_ends_the_call(lab: Any) -> None:
    stub = await connect(lab)
    stream = stub.server_stream("Follow", lab.chunk())
    assert await stream.read()
    reader = asyncio.create_task(stream.read())
    asyncio.get_running_loop().call_soon(reader.cancel)
    with pytest.raises(asyncio.CancelledError):
        await reader
    await ended(lab)


async def test_a_closed_channel_is_a_transport_error(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    channel = open_channel(lab.address, server_name=lab.server_name, tls=lab.issue(Role.ENVOY, "north"))
    stub = Stub(channel, lab.service_descriptor)
    stream = stub.server_stream("Follow", lab.chunk())
    assert await stream.read()
    await channel.close()
    with pytest.raises(TransportError):
        await stream.read()
    for method in ("Echo", "Follow", "Collect", "Talk"):
        with pytest.raises(TransportError):
            await call(stub, method, lab)


@pytest.mark.parametrize("end", ["cancel", "close"])
@pytest.mark.parametrize("is_dialled", [False, True], ids=["before it dials", "while it dials"])
async def test_a_writer_of_a_call_ended_before_it_is_connected_gets_a_transport_error(
    lab: Any, end: str, is_dialled: bool
) -> None:
    """The line may be cut, or the peer said to be elsewhere, while a call still waits for its connection."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # takes connections, and never says a word
        silent.setblocking(False)
        tls = lab.issue(Role.ENVOY, "north")
        channel = open_channel(f"127.0.0.1:{silent.getsockname()[1]}", server_name=lab.server_name, tls=tls)
        stream = Stub(channel, lab.service_descriptor).bidi("Talk")
        writer = asyncio.create_task(stream.try_write(lab.chunk()))
        if is_dialled:
            stack.enter_context((await asyncio.get_running_loop().sock_accept(silent))[0])
        else:
            await asyncio.sleep(0)
        if end == "cancel":
            stream.cancel()
        else:
            await channel.close()
        async with asyncio.timeout(60):
            with pytest.raises(TransportError, match="ended on this side"):
                await writer
            with pytest.raises(TransportError, match="ended on this side"):
                await stream.read()
        await channel.close()


async def test_a_cancelled_writer_is_cancelled_and_ends_the_call_that_waits_for_its_connection(lab: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tls = lab.issue(Role.ENVOY, "north")
        channel = open_channel(f"127.0.0.1:{silent.getsockname()[1]}", server_name=lab.server_name, tls=tls)
        stream = Stub(channel, lab.service_descriptor).bidi("Talk")
        writer = asyncio.create_task(stream.try_write(lab.chunk()))
        await asyncio.sleep(0)
        writer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writer
        with pytest.raises(TransportError, match="ended on this side"):
            await stream.read()
        await channel.close()


async def test_an_upload_refused_halfway_says_why_and_asks_for_no_more(lab: Any) -> None:
    stub = await connect(lab)
    asked = []
    lab.service.error = LimitError("the archive is larger than 1 GiB")

    async def pieces() -> Any:
        while True:
            asked.append(None)
            yield lab.chunk(data=bytes(1 << 20))

    with pytest.raises(LimitError, match="1 GiB"):
        await stub.client_stream("Collect", pieces())
    assert len(asked) < 100


async def test_an_upload_answered_halfway_gets_its_answer(lab: Any) -> None:
    stub = await connect(lab)

    async def pieces() -> Any:
        yield lab.chunk(data=b"enough")
        while True:
            yield lab.chunk(data=bytes(1 << 20))

    assert (await stub.client_stream("Collect", pieces())).offset == 6


async def test_what_the_source_of_an_upload_raises_ends_the_upload(lab: Any) -> None:
    stub = await connect(lab)

    def pieces() -> Any:
        yield lab.chunk(data=b"1")
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        await stub.client_stream("Collect", pieces())
    assert await stub.unary("Echo", lab.chunk())


@pytest.mark.parametrize("attempt", range(5))
async def test_a_writer_gets_the_servers_status_however_the_two_meet(lab: Any, attempt: int) -> None:
    """The race of grpc issue 36066: the failed write must not replace the status by INTERNAL."""
    stub = await connect(lab)
    stream = stub.bidi("Talk")
    await stream.write(lab.chunk())
    assert await stream.read()
    lab.service.calls[0].end(IdentityError("superseded"))
    with pytest.raises(IdentityError, match="superseded"):
        while True:
            await stream.write(lab.chunk(data=bytes(attempt * 4096)))


async def test_a_call_ended_while_its_reply_is_under_way_still_tells_its_client_why(lab: Any) -> None:
    """While a reply waits for the client to read, gRPC sends no status: the handler must not try."""
    stub = await connect(lab)
    stream = stub.bidi("Talk")
    await stream.write(lab.chunk(data=bytes(3 << 20)))
    while not lab.service.calls or not lab.service.calls[0].is_replying:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0)
    lab.service.calls[0].end(IdentityError("superseded"))
    with pytest.raises(IdentityError, match="superseded"):
        while True:
            await stream.read()


async def test_reading_and_writing_tasks_both_learn_why_a_session_ended(lab: Any) -> None:
    stub = await connect(lab)
    stream = stub.bidi("Talk")
    await stream.write(lab.chunk())
    assert await stream.read()

    async def write_on() -> None:
        while True:
            await stream.write(lab.chunk(data=bytes(1 << 16)))

    async def read_on() -> None:
        while await stream.read() is not None:
            pass

    tasks = [asyncio.create_task(write_on()), asyncio.create_task(read_on())]
    lab.service.calls[0].end(IdentityError("superseded"))
    for task in tasks:
        with pytest.raises(IdentityError, match="superseded"):
            await task


async def test_a_slow_reader_slows_the_writer_down(lab: Any) -> None:
    """Flow control reaches through: what is not read is not taken from the source without bound."""
    stub = await connect(lab)
    stream = stub.bidi("Talk")
    written = 0

    async def write_on() -> None:
        nonlocal written
        for _ in range(400):
            await stream.write(lab.chunk(data=bytes(1 << 20)))
            written += 1
        await stream.done_writing()

    writer = asyncio.create_task(write_on())
    assert await stream.read()
    replies = 1
    while await stream.read() is not None:
        replies += 1
        assert written - replies < 200
    await writer
    assert replies == 400
