"""Lines for large payloads: mutual TLS, a ticket, then bytes one way and nothing else (docs/adr/0015-bulk-lines.md).

Rules:

1. A call authorises, announces, limits and ends a transfer. It issues a ticket to its caller: random, good once, for
   the certificate of the call, as long as the call holds it. When the ticket is given back, its line is closed.
2. Who dials says the ticket, and how many bytes are to come or to be fetched; one byte answers that both are right.
   Before that a line is refused, and counted, if its certificate may not call the method (the same `Authority` as for
   calls), if nobody waits for its ticket, or if the ticket is another's. A refusal does not use the ticket up.
3. A stranger costs little: its handshake waits in the event loop, for `GREETING_S` at most, and of such there are at
   most `MOST_GREETINGS`; for a further one, the one that was longest silent is closed. A site is through in moments.
4. A line blocks whoever reads or writes it, so it has a thread; `carried` runs one, and cuts the line if its caller is
   cancelled. The event loop meanwhile does nothing else to it. There are at most `MOST_LINES`, and of one peer
   `MOST_OF_ONE`; beyond them no ticket is issued, and the bytes travel in the call.
5. How many bytes there are both ends know: an end that comes early is a cut, whatever TLS says of it, and so is a line
   on which nothing moves for `STALL_S` (twice that, at most, at the end that sends). Who fetches ends the line once it
   has all, and who sends waits for that.
6. An end in place of the answering byte says that nobody waits for this ticket (`LineRefusedError`). Whatever else goes
   wrong before that byte means that there is no line to be had here (`NoLineError`); after it, that this one was cut
   (`TransportError`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from federation.errors import FederationError, TransportError
from federation.runtime.clock import pause
from federation.telemetry.logs import get_logger
from federation.transport.authority import CallRefusal, RefusedCallError
from federation.transport.lines import (
    ALPN,
    BLOCK_BYTES,
    GREETING,
    LEAST_BYTES,
    STALL_S,
    TICKET_BYTES,
    WELCOME,
    Line,
    carried,
    check_protocol,
    configure,
)
from federation.transport.secured import SecuredSocket, following_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from _typeshed import FileDescriptorLike
    from OpenSSL import SSL

    from federation.runtime.clock import Cancellable
    from federation.telemetry.metrics import Metrics
    from federation.transport.authority import Authority, Peer
    from federation.transport.credentials import TlsFiles

_T = TypeVar("_T")

MOST_LINES = 32
MOST_OF_ONE = 4
FEW_LINES = 4
SMALL_BLOCK_BYTES = 128 << 10
"""Size of a block where many lines have one."""
MOST_GREETINGS = 64
GREETING_S = 10.0
CLAIM_S = 30.0
"""How long a ticket waits for its line."""
_ACCEPT_AGAIN_S = 1.0


@dataclass(eq=False, slots=True)
class Ticket:
    """What a call gives its caller, to be said on the line.

    Attributes:
        id: the words.
        peer: who may say them, and with which certificate.
        nbytes: how many bytes go over the line.
        line: the line on which they were said; `TransportError` if nobody did in time.
    """

    id: bytes
    peer: Peer
    nbytes: int
    line: asyncio.Future[Line] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def has_line(self) -> bool:
        """Whether its line has come."""
        return self.line.done() and not self.line.cancelled() and self.line.exception() is None

    def lapse(self) -> None:
        """Wait for the line no longer, if it has not come."""
        if not self.line.done():
            self.line.set_exception(TransportError("nobody said the ticket in time"))
            self.line.exception()  # whoever waits looks at it; perhaps nobody does


class BulkServer:
    """Where lines arrive. Issues no tickets before `start` has found a port.

    Args:
        authority: who may call what.
        method: full name of a method: who may call it may dial.
        metrics: where refusals are counted.
        tls: certificate files; None: there are no lines.
        host: address to listen at.

    Attributes:
        port: where it listens; 0 while it does not.
    """

    def __init__(self, authority: Authority, method: str, metrics: Metrics, *, tls: TlsFiles | None, host: str) -> None:
        self.port = 0
        self._authority = authority
        self._method = method
        self._metrics = metrics
        self._tls = tls
        self._host = host
        self._log = get_logger(__name__)
        self._tickets: dict[bytes, Ticket] = {}
        self._crowd = self._before = 0  # most tickets since there was none, and before that
        self._greetings: dict[asyncio.Task[None], Cancellable] = {}
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._pool: ThreadPoolExecutor | None = None

    async def start(self, ports: Sequence[int]) -> int:
        """Listen at the first of `ports` that is free, and return it; 0 if none is, or there is no TLS.

        Raises:
            ConfigurationError: the certificate files are not usable.
        """
        if self._tls is None:
            return 0
        context = following_context(self._tls, ALPN)
        listener = next(filter(None, (self._listen(port) for port in ports)), None)
        if listener is None:
            return 0
        self.port = listener.getsockname()[1]
        self._pool = ThreadPoolExecutor(MOST_LINES, thread_name_prefix="line")
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener, context), name="bulk/accept")
        return self.port

    async def stop(self) -> None:
        """Close everything; calls that hold tickets have ended."""
        self.port = 0
        tasks = {*self._greetings, *([self._accepting] if self._accepting else [])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._listener is not None:
            self._listener.close()  # here, as a task that was cancelled at once has never run
        if self._pool is not None:
            self._pool.shutdown()

    @contextlib.contextmanager
    def issue(self, peer: Peer, nbytes: int) -> Iterator[Ticket | None]:
        """Issue a ticket for as long as the context lasts; None: there is no line to be had for so many bytes now."""
        theirs = sum(ticket.peer.identity == peer.identity for ticket in self._tickets.values())
        if not self.port or nbytes <= LEAST_BYTES or len(self._tickets) >= MOST_LINES or theirs >= MOST_OF_ONE:
            yield None
            return
        if not self._tickets:
            self._before, self._crowd = self._crowd, 0
        ticket = Ticket(secrets.token_bytes(TICKET_BYTES), peer, nbytes)
        self._tickets[ticket.id] = ticket
        self._crowd = max(self._crowd, len(self._tickets))
        timer = self._authority.clock.timer(CLAIM_S, ticket.lapse)
        try:
            yield ticket
        finally:
            timer.cancel()
            del self._tickets[ticket.id]
            ticket.lapse()
            if ticket.has_line:
                ticket.line.result().close()

    async def carry(self, line: Line, work: Callable[[], _T]) -> _T:
        """Run what reads or writes a line of this server in a thread, as `carried`."""
        return await carried(line, work, self._pool)

    @property
    def _block_bytes(self) -> int:
        """Size of a line's blocks: where many have lines, as far as can be told from the time before, small."""
        return BLOCK_BYTES if max(self._crowd, self._before) <= FEW_LINES else SMALL_BLOCK_BYTES

    def _listen(self, port: int) -> socket.socket | None:
        for host, options in _places(self._host):
            try:
                listener = socket.create_server((host, port), backlog=MOST_GREETINGS, **options)
            except OSError as error:
                self._log.info("bulk port not free", host=host, port=port, reason=str(error))
                continue
            listener.setblocking(False)
            return listener
        return None

    async def _accept(self, listener: socket.socket, context: Callable[[], SSL.Context]) -> None:
        while True:
            try:
                plain, _ = await _when_ready(listener, listener.accept)
            except OSError as error:  # too many open files; or whoever dialled was gone at once
                self._log.warning("a line could not be accepted", reason=str(error))
                await pause(self._authority.clock, _ACCEPT_AGAIN_S)
                continue
            plain.setblocking(False)
            self._begin(plain, context)
            await asyncio.sleep(0)  # others have their turn however many dial

    def _begin(self, plain: socket.socket, context: Callable[[], SSL.Context]) -> None:
        """Rule 3: who is not through in time, or makes way for others, is cancelled."""
        waiting = [task for task in self._greetings if not task.cancelling()]
        if len(waiting) >= MOST_GREETINGS:
            waiting[0].cancel()
        task = asyncio.create_task(self._greet(plain, context), name="bulk/greet")
        self._greetings[task] = self._authority.clock.timer(GREETING_S, task.cancel)
        task.add_done_callback(functools.partial(self._over, plain))

    def _over(self, plain: socket.socket, greeting: asyncio.Task[None]) -> None:
        self._greetings.pop(greeting).cancel()
        if greeting.cancelled():
            plain.close()  # again, unless it was so before it began
            self._count(CallRefusal.HANDSHAKE)
            self._log.info("line refused", reason="it said no ticket in time")

    async def _greet(self, plain: socket.socket, context: Callable[[], SSL.Context]) -> None:
        """Rule 2: hand the line to whoever waits for its ticket, or close it."""
        with contextlib.ExitStack() as stack:
            stack.callback(plain.close)
            try:
                configure(plain)
                secured = SecuredSocket(context(), plain)
                await _when_ready(secured, secured.shake_hands)
                check_protocol(secured)
                said, nbytes = GREETING.unpack(await _read(secured, GREETING.size))
                ticket = self._find(said, nbytes, secured)
                secured.send(WELCOME)
            except RefusedCallError as error:
                self._count(error.refusal)
                self._log.warning("line refused", reason=str(error))
                return
            except (OSError, FederationError) as error:
                self._count(CallRefusal.HANDSHAKE)
                self._log.info("line refused", reason=str(error))
                return
            stack.pop_all()
            secured.block(STALL_S)
            # Nothing was awaited since it was found.
            ticket.line.set_result(Line(secured, block_bytes=self._block_bytes))

    def _find(self, said: bytes, nbytes: int, secured: SecuredSocket) -> Ticket:
        peer = self._authority.authorise(self._method, _auth_context(secured))
        ticket = self._tickets.get(said)
        if ticket is None or ticket.line.done():
            raise RefusedCallError(CallRefusal.NO_TICKET, f"nobody waits for the ticket that {peer.identity} gave")
        if ticket.peer.fingerprint != peer.fingerprint:
            raise RefusedCallError(
                CallRefusal.NOT_ITSELF,
                f"{peer.identity} gave a ticket that was issued to {ticket.peer.identity}, or to another certificate",
            )
        if ticket.nbytes != nbytes:
            raise RefusedCallError(
                CallRefusal.MALFORMED, f"{peer.identity} says {nbytes} bytes, the ticket is for {ticket.nbytes}"
            )
        return ticket

    def _count(self, refusal: CallRefusal) -> None:
        self._metrics.refused_calls_total.labels(reason=refusal.value).inc()


async def _read(secured: SecuredSocket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        part = await _when_ready(secured, lambda: secured.receive(nbytes - len(data)))  # noqa: B023  # called at once
        if not part:
            raise ConnectionAbortedError("the line ended before its ticket")
        data += part
    return data


async def _when_ready(opened: FileDescriptorLike, step: Callable[[], _T]) -> _T:
    """Return what `step` returns once the socket lets it."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return step()
        except (ssl.SSLWantReadError, BlockingIOError):
            add, remove = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            add, remove = loop.add_writer, loop.remove_writer
        ready = asyncio.Event()
        add(opened, ready.set)
        try:
            await ready.wait()
        finally:
            remove(opened)


def _places(host: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where to listen, and how, first choice first: as gRPC, anywhere means every family of addresses."""
    if host in {"0.0.0.0", "::"} and socket.has_dualstack_ipv6():  # noqa: S104  # the operator's choice
        yield "::", {"family": socket.AF_INET6, "dualstack_ipv6": True}
    yield host, {"family": socket.AF_INET6 if ":" in host else socket.AF_INET}


def _auth_context(secured: SecuredSocket) -> dict[str, list[bytes]]:
    """Say of a connection what gRPC says of one, for the authority."""
    certificate = secured.certificate
    uris = [uri.encode() for uri in secured.names(x509.UniformResourceIdentifier)]
    return {
        "x509_pem_cert": [certificate.public_bytes(serialization.Encoding.PEM)] if certificate else [],
        "ssl_tls_version": [secured.version.encode()],
        "peer_spiffe_id": uris if len(uris) == 1 else [],
    }
