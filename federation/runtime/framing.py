"""Protobuf messages over a stream socket, each behind its length: four bytes, big-endian.

Used between a collaborator (or envoy) and its trainer. Each side treats the other as a stranger: a frame that is too
long, cut short or does not parse is `MalformedMessageError`, and the length is checked before anything is allocated.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from federation.errors import MalformedMessageError

if TYPE_CHECKING:
    import socket

MAX_FRAME_BYTES = 8 * 1024 * 1024
"""A schema of a hundred thousand tensors fits; tensors never travel in frames."""

_LENGTH = struct.Struct(">I")
_M = TypeVar("_M", bound=Message)


def _encode(message: Message) -> bytes:
    body = message.SerializeToString()
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {len(body)} bytes is longer than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def _check_length(prefix: bytes, max_bytes: int) -> int:
    length: int = _LENGTH.unpack(prefix)[0]
    if length > max_bytes:
        raise MalformedMessageError(f"a frame announces {length} bytes, at most {max_bytes} are allowed")
    return length


def _decode(kind: type[_M], body: bytes) -> _M:
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise MalformedMessageError(f"a frame of {len(body)} bytes is not a {kind.DESCRIPTOR.name}") from error
    return message


def _cut(got: int, expected: int) -> MalformedMessageError:
    return MalformedMessageError(f"the stream ended inside a frame: got {got} of {expected} bytes")


class FrameStream:
    """Frames over an asyncio stream; one sender and one receiver at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            ValueError: it is longer than `MAX_FRAME_BYTES`.
            ConnectionError: the other side is gone.
        """
        self._writer.write(_encode(message))
        await self._writer.drain()

    async def receive(self, kind: type[_M], max_bytes: int = MAX_FRAME_BYTES) -> _M | None:
        """Return the next message, or None if the other side closed the stream between two frames.

        Raises:
            MalformedMessageError: too long, cut short, or not a message of this kind.
        """
        try:
            prefix = await self._reader.readexactly(_LENGTH.size)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise _cut(len(error.partial), _LENGTH.size) from error
            return None
        except ConnectionResetError:
            return None
        length = _check_length(prefix, max_bytes)
        try:
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionResetError) as error:
            got = len(error.partial) if isinstance(error, asyncio.IncompleteReadError) else 0
            raise _cut(got, length) from error
        return _decode(kind, body)

    def close(self) -> None:
        """Close the socket without waiting."""
        self._writer.close()

    async def aclose(self) -> None:
        """Close the socket and wait until it is closed."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def open_frames(sock: socket.socket) -> FrameStream:
    """Take over a connected stream socket."""
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    return FrameStream(reader, writer)


class BlockingFrames:
    """The same frames for a process without an event loop: the trainer."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            ValueError: it is longer than `MAX_FRAME_BYTES`.
            OSError: the other side is gone.
        """
        self._socket.sendall(_encode(message))

    def receive(self, kind: type[_M], max_bytes: int = MAX_FRAME_BYTES) -> _M | None:
        """Return the next message, or None if the other side closed the stream between two frames.

        Raises:
            MalformedMessageError: too long, cut short, or not a message of this kind.
        """
        prefix = self._read(_LENGTH.size, empty_is_end=True)
        if prefix is None:
            return None
        body = self._read(_check_length(prefix, max_bytes), empty_is_end=False)
        return _decode(kind, body or b"")

    def _read(self, size: int, *, empty_is_end: bool) -> bytes | None:
        buffer = bytearray(size)
        view = memoryview(buffer)
        got = 0
        while got < size:
            count = self._socket.recv_into(view[got:])
            if count == 0:
                if got == 0 and empty_is_end:
                    return None
                raise _cut(got, size)
            got += count
        return bytes(buffer)
