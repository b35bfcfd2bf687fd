from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING

import pytest

from federation.collaborator import local_socket
from federation.errors import ConfigurationError, MalformedMessageError, TransportError

if TYPE_CHECKING:
    from pathlib import Path


async def _echo(stream: local_socket.LineStream) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)


async def test_lines_go_both_ways_whatever_the_length_of_the_path(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    server = await local_socket.serve(folder / "envoy.sock", _echo)
    stream = await local_socket.connect(folder / "envoy.sock")
    await stream.send({"type": "hello", "text": "é\n"})
    assert await stream.receive() == {"type": "hello", "text": "é\n"}
    await stream.aclose()
    await server.close()


async def test_nobody_else_may_open_the_socket(tmp_path: Path) -> None:
    server = await local_socket.serve(tmp_path / "envoy.sock", _echo)
    assert stat.S_IMODE((tmp_path / "envoy.sock").stat().st_mode) == 0o600
    await server.close()


async def test_a_second_envoy_on_one_socket_is_refused(tmp_path: Path) -> None:
    server = await local_socket.serve(tmp_path / "envoy.sock", _echo)
    with pytest.raises(ConfigurationError, match="already listens"):
        await local_socket.serve(tmp_path / "envoy.sock", _echo)
    await server.close()


async def test_the_socket_of_a_dead_envoy_is_replaced(tmp_path: Path) -> None:
    import socket

    dead = socket.socket(socket.AF_UNIX)
    descriptor = os.open(tmp_path, os.O_PATH)
    dead.bind(f"/proc/self/fd/{descriptor}/envoy.sock")
    os.close(descriptor)
    dead.close()
    server = await local_socket.serve(tmp_path / "envoy.sock", _echo)
    stream = await local_socket.connect(tmp_path / "envoy.sock")
    await stream.send({"type": "hello"})
    assert await stream.receive() == {"type": "hello"}
    await stream.aclose()
    await server.close()


async def test_dialling_where_nobody_listens_is_a_transport_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="no envoy listens"):
        await local_socket.connect(tmp_path / "envoy.sock")


@pytest.mark.parametrize(
    "line", [b"not json\n", b"[1]\n", b'{"no": "type"}\n', b'{"type": 3}\n', b"x" * 70_000 + b"\n"]
)
async def test_a_line_that_makes_no_sense_is_refused(tmp_path: Path, line: bytes) -> None:
    got: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def listen(stream: local_socket.LineStream) -> None:
        try:
            await stream.receive()
        except MalformedMessageError as error:
            got.set_result(error)

    server = await local_socket.serve(tmp_path / "envoy.sock", listen)
    stream = await local_socket.connect(tmp_path / "envoy.sock")
    stream._writer.write(line)
    assert isinstance(await got, MalformedMessageError)
    await stream.aclose()
    await server.close()
