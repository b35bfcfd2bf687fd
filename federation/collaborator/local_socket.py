"""JSON lines over a unix socket between an envoy and its collaborators and command line.

Rules: one JSON object per line, at most 64 KiB; each has a ``type``; who connects must be the same user (or root),
which the kernel tells, not the message. Sockets are reached through their folder's descriptor, because a socket's path
may have 107 bytes only and state folders are often deeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from federation.errors import ConfigurationError, IdentityError, MalformedMessageError, TransportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)
MAX_LINE_BYTES = 64 * 1024

Message = dict[str, Any]
Handler = Callable[["LineStream"], Awaitable[None]]


class LineStream:
    """One connection: JSON objects out and in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: Message) -> None:
        """Send one object.

        Raises:
            TransportError: the other side is gone.
        """
        line = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"a line of {len(line)} bytes is longer than {MAX_LINE_BYTES}")
        try:
            self._writer.write(line)
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise TransportError(f"the local socket is closed: {error}") from error

    async def receive(self) -> Message | None:
        """Return the next object, or None at the end of the connection.

        Raises:
            MalformedMessageError: a line is too long, not JSON, or not an object with a type.
        """
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        except ValueError as error:  # asyncio's word for a line over the limit
            raise MalformedMessageError(f"a line on the local socket is longer than {MAX_LINE_BYTES} bytes") from error
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line)
        except ValueError as error:
            raise MalformedMessageError("a line on the local socket is not JSON") from error
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise MalformedMessageError("a line on the local socket is not an object with a type")
        return message

    def close(self) -> None:
        """Close the connection without waiting."""
        self._writer.close()

    async def aclose(self) -> None:
        """Close the connection and wait until it is closed."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def connect(path: Path) -> LineStream:
    """Dial the socket at `path`.

    Raises:
        TransportError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        with _short_path(path) as short:
            await asyncio.get_running_loop().sock_connect(sock, short)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_BYTES)
    except OSError as error:
        sock.close()
        raise TransportError(f"no envoy listens at {path}: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    return LineStream(reader, writer)


class LineServer:
    """A listening socket and the connections it accepted; made by `serve`."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket."""
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """Stop listening, cut every connection, and return once their handlers have ended."""
        if self._server is not None:
            self._server.close()
        for writer in self._connections.values():
            writer.close()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="local-connection")
        self._connections[task] = writer
        task.add_done_callback(self._forget)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            check_peer(writer)
            await self._handler(LineStream(reader, writer))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a local connection failed: %s", error, exc_info=error)


async def serve(path: Path, handler: Handler) -> LineServer:
    """Listen at `path` (mode 0600), replacing a socket nobody listens at any more.

    Args:
        path: the socket's file; its folder exists.
        handler: serves one connection, which is closed when it returns.

    Raises:
        ConfigurationError: somebody does listen there, or the folder cannot be written.
    """
    server = LineServer(handler)
    await server.start(_bind(path))
    return server


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(path) as short:
            if _is_served(short):
                raise ConfigurationError(
                    f"another envoy already listens at {path}; stop it, or use another state folder"
                )
            path.unlink(missing_ok=True)
            sock.bind(short)
            # Nobody can have connected before listen(), so the mode is set in time.
            os.chmod(short, 0o600)
    except OSError as error:
        sock.close()
        raise ConfigurationError(f"cannot listen at {path}: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def check_peer(writer: asyncio.StreamWriter) -> None:
    """Check that the other side runs as this user or as root.

    Raises:
        IdentityError: it does not.
    """
    size = struct.calcsize("3i")
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("3i", raw)
    if uid not in (os.getuid(), 0):
        raise IdentityError(f"user id {uid} connected to the local socket of user id {os.getuid()}")


def _is_served(short: str) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(short)
    except OSError:
        return False
    finally:
        probe.close()
    return True


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
