"""One end of a line for a large payload, and how it is dialled; the rules are those of `federation.transport.bulk`."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from federation.errors import TransportError
from federation.runtime.threads import started_in
from federation.transport.secured import SecuredSocket, client_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from federation.transport.credentials import TlsFiles

_T = TypeVar("_T")

ALPN = "federation-bulk/1"
BLOCK_BYTES = 1 << 20
"""What is read, checked and written at a time: it stays in a core's cache. Of smaller ones Python has more to do."""
LEAST_BYTES = 4 << 20
"""What fits in one chunk of a call is not worth a handshake."""
DIAL_S = 5.0
"""For one address to answer, and again for all that is said before the first byte of the payload."""
STALL_S = 60.0
TICKET_BYTES = 16
GREETING = struct.Struct(f"!{TICKET_BYTES}sQ")
WELCOME = b"\x01"
_KEEPALIVE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES = 60, 10, 2  # as calls: a vanished peer shows within 80 s


class NoLineError(TransportError):
    """A line could not be dialled: the bytes have to travel in the call."""


class LineRefusedError(TransportError):
    """Lines there are, but nobody waits for this ticket any more: its call may have ended the moment before."""


class Line:
    """One end of a line. For one thread at a time, but for `cut`, which any may call.

    Args:
        secured: the connection; None: it is still to be dialled.
        block_bytes: what it is best read and written by.

    Attributes:
        block_bytes: likewise.
    """

    def __init__(self, secured: SecuredSocket | None = None, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.block_bytes = block_bytes
        self._secured = secured
        self._plain = secured.plain if secured is not None else None
        self._is_cut = False
        self._changing = threading.Lock()  # a number that was closed may be another file's the moment after

    def send(self, data: bytes | memoryview) -> None:
        """Send bytes; blocks until they are under way.

        Raises:
            TransportError: the line was cut.
        """
        with _as_transport_error():
            self._open().send(data)

    def send_from(self, pread: Callable[[int, int], bytes], offset: int, end: int) -> None:
        """Send the bytes from `offset` to `end` of what `pread` reads at (offset, size); blocks, errors as both."""
        for start in range(offset, end, self.block_bytes):
            self.send(pread(start, min(self.block_bytes, end - start)))

    def receive(self, nbytes: int) -> Iterator[memoryview]:
        """Yield so many bytes as they come, block by block; blocks. Each block is valid until the next.

        Raises:
            TransportError: the line ended before; what came was yielded.
        """
        block = memoryview(bytearray(min(self.block_bytes, nbytes)))
        while nbytes:
            wanted = block[:nbytes]
            got = self.receive_into(wanted)
            nbytes -= got
            if got:
                yield wanted[:got]
            if got < len(wanted):
                raise TransportError(f"the line ended {nbytes} bytes too early")

    def receive_into(self, view: memoryview) -> int:
        """Fill `view`; blocks. Returns how many bytes came: fewer only if the line ended."""
        return 0 if self._is_cut else self._open().fill(view)

    def wait_for_end(self) -> None:
        """Return once the other side, which has all it wanted, has ended the line; blocks.

        Raises:
            TransportError: the line was cut instead, or something came.
        """
        with _as_transport_error():
            came = self._open().receive(1)
        if came or self._is_cut:
            raise TransportError("the line was cut before the other side had all")

    def cut(self) -> None:
        """Make whoever reads or writes the line find it ended."""
        with self._changing:
            self._is_cut = True
            if self._plain is not None:
                with contextlib.suppress(OSError):
                    self._plain.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the line up; nobody may be reading or writing it."""
        with self._changing:
            self._is_cut = True
            if self._plain is not None:
                self._plain.close()

    def take(self, plain: socket.socket) -> None:
        """Go on with this socket, in place of the one before.

        Raises:
            TransportError: the line was cut.
        """
        with self._changing:
            if self._is_cut:
                plain.close()
                raise TransportError("the line was cut on this side")
            self._plain = plain

    def secure(self, secured: SecuredSocket) -> None:
        """Read and write through this TLS, on the socket that was taken."""
        self._secured = secured

    def _open(self) -> SecuredSocket:
        if self._secured is None:
            raise TransportError("the line was not dialled")
        if self._is_cut:  # and perhaps closed: OpenSSL knows but a number, which may be another file's by now
            raise TransportError("the line was cut on this side")
        return self._secured


class BulkAddress:
    """Where lines of one server are dialled, and as whom.

    Args:
        host: name or address.
        port: bulk port of the server.
        server_name: DNS name its certificate must carry.
        tls: our certificate files; read here.

    Raises:
        ConfigurationError: they are not usable.
    """

    def __init__(self, host: str, port: int, *, server_name: str, tls: TlsFiles) -> None:
        self._host = host
        self._port = port
        self._server_name = server_name
        self._context = client_context(tls, ALPN)

    def dial(self, line: Line, ticket: bytes, nbytes: int) -> None:
        """Open `line` with a ticket, for so many bytes. Blocks for seconds at most; `Line.cut` ends it.

        Raises:
            NoLineError: there is no line to be had at this address.
            LineRefusedError: there is, but not for this ticket.
            TransportError: it was cut on this side.
        """
        try:
            plain = self._connect(line)
            plain.setblocking(False)
            secured = SecuredSocket(self._context, plain, server_name=self._server_name)
            until = time.monotonic() + DIAL_S
            _in_time(secured, until, secured.shake_hands)
            check_protocol(secured)
            secured.send(GREETING.pack(ticket, nbytes))
            welcome = _in_time(secured, until, lambda: secured.receive(1))
            if not welcome:
                raise LineRefusedError(f"{self._host}:{self._port} ({self._server_name}) refused the line")
            if welcome != WELCOME:
                raise ConnectionRefusedError("the other side does not say what it should")
            secured.block(STALL_S)
            line.secure(secured)
        except OSError as error:
            raise NoLineError(f"no line to {self._host}:{self._port} ({self._server_name}): {error}") from error

    def _connect(self, line: Line) -> socket.socket:
        failure: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            try:
                plain = socket.socket(family, kind, protocol)
            except OSError as error:  # this machine has no such addresses
                failure = error
                continue
            plain.settimeout(DIAL_S)
            line.take(plain)
            try:
                plain.connect(address)
            except OSError as error:
                plain.close()
                failure = error
            else:
                configure(plain)
                return plain
        raise failure


async def carried(line: Line, work: Callable[[], _T], pool: Executor | None = None) -> _T:
    """Run what reads or writes a line in a thread; if the caller is cancelled, cut the line and wait for the thread."""
    async with started_in(pool, work) as job:
        try:
            return await asyncio.shield(job)
        finally:
            if not job.done():
                line.cut()


def _in_time(secured: SecuredSocket, until: float, step: Callable[[], _T]) -> _T:
    """Return what `step` returns, if that is before `until` of the monotonic clock, however busy the other side is."""
    waiting = select.poll()
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            waiting.register(secured, select.POLLIN)
        except ssl.SSLWantWriteError:
            waiting.register(secured, select.POLLOUT)
        if (left_s := until - time.monotonic()) <= 0 or not waiting.poll(left_s * 1000):
            raise TimeoutError("the other side takes too long")


def check_protocol(secured: SecuredSocket) -> None:
    """Check that the other side means a line: TLS goes on without an agreement.

    Raises:
        ConnectionRefusedError: it does not.
    """
    if secured.protocol != ALPN:
        raise ConnectionRefusedError(f"the other side does not speak {ALPN}")


def configure(plain: socket.socket) -> None:
    """Send without delay, and notice a peer that vanished."""
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    # Keepalive says nothing while bytes of ours are not acknowledged.
    longest_s = _KEEPALIVE_S + _KEEPALIVE_INTERVAL_S * _KEEPALIVE_PROBES
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, longest_s * 1000)


@contextlib.contextmanager
def _as_transport_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransportError(f"the line was cut: {error}") from error
