"""Lines for large payloads by themselves: who gets one, who is refused and counted, and what a stranger costs."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from federation.collaborator.link import AGAIN_S, BulkDialler
from federation.errors import TransportError
from federation.names import FederationName, Role
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.revocation import revoke
from federation.transport import lines
from federation.transport.authority import Authority, CallRefusal, Peer
from federation.transport.bulk import CLAIM_S, GREETING_S, MOST_GREETINGS, MOST_LINES, MOST_OF_ONE, BulkServer, Ticket
from federation.transport.credentials import TlsFiles, client_context, read_certificate
from federation.transport.lines import BulkAddress, Line, LineRefusedError, NoLineError, carried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

METHOD = "/probe.v1.Probe/Talk"
ENOUGH = lines.LEAST_BYTES + 1
ANYWHERE = "0.0.0.0"  # noqa: S104


class Hall:
    """One server of lines, those who dial it, and what it counted."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab
        authority = Authority(FederationName("heart"), {METHOD: frozenset({Role.ENVOY})}, clock=lab.clock)
        authority.revoked = lab.revoked
        self._authority = authority
        self.server = self.made("127.0.0.1")

    def made(self, host: str, **changes: Any) -> BulkServer:
        tls = self.lab.issue(Role.DIRECTOR, "director")
        return BulkServer(self._authority, METHOD, self.lab.metrics, **{"tls": tls, "host": host, **changes})

    def address(self, tls: TlsFiles, host: str = "127.0.0.1", server: BulkServer | None = None) -> BulkAddress:
        return BulkAddress(host, (server or self.server).port, server_name=self.lab.server_name, tls=tls)

    def peer(self, tls: TlsFiles) -> Peer:
        facts = read_certificate(tls.certificate.read_bytes())
        return Peer(
            identity=facts.identity, expires_at=facts.expires_at, serial=facts.serial, fingerprint=facts.fingerprint
        )

    async def dial(self, address: BulkAddress, ticket: bytes, nbytes: int = ENOUGH) -> Line:
        """Return the site's end of a line; a thread of its own dials it."""
        line = Line()
        try:
            await carried(line, lambda: address.dial(line, ticket, nbytes))
        except BaseException:
            line.close()
            raise
        return line

    async def refused(self, address: BulkAddress, ticket: bytes, nbytes: int = ENOUGH) -> None:
        with pytest.raises(LineRefusedError, match="refused the line"):
            await self.dial(address, ticket, nbytes)

    async def reached(self, address: BulkAddress, ticket: Ticket) -> None:
        """Check that a ticket still gets its line."""
        line = await self.dial(address, ticket.id, ticket.nbytes)
        assert ticket.has_line
        line.close()

    async def stranger(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    async def settled(self) -> None:
        """Return once all who dialled so far are through or shut out."""
        tls = self.lab.issue(Role.ENVOY, "last")
        with self.server.issue(self.peer(tls), ENOUGH) as ticket:
            assert ticket is not None
            await self.reached(self.address(tls), ticket)
        if self.server._greetings:
            await asyncio.wait(self.server._greetings)
        await asyncio.sleep(0)

    def counted(self) -> dict[str, float]:
        """What was refused so far, by reason."""
        found = {refusal.value: self.lab.refused(refusal) for refusal in CallRefusal}
        return {reason: count for reason, count in found.items() if count}


@pytest.fixture
async def hall(lab: Any) -> AsyncIterator[Hall]:
    made = Hall(lab)
    await made.server.start([0])
    yield made
    await made.server.stop()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("line")]


def open_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {each for each in found if "socket" in each or "memfd" in each}


async def test_bytes_go_both_ways_and_whoever_sends_hears_the_end(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    data = os.urandom(ENOUGH)
    for from_site in (True, False):
        with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
            assert ticket is not None
            far = await hall.dial(hall.address(tls), ticket.id)
            near = await ticket.line
            came = bytearray(ENOUGH)

            def send(line: Line) -> None:
                line.send(data)
                line.wait_for_end()

            def receive(line: Line, came: bytearray = came) -> int:
                got = line.receive_into(memoryview(came))
                far.close() if line is far else near.close()  # noqa: B023
                return got

            site, server = (send, receive) if from_site else (receive, send)
            ends = await asyncio.gather(
                carried(far, lambda: site(far)),  # noqa: B023
                hall.server.carry(near, lambda: server(near)),  # noqa: B023
            )
            assert bytes(came) == data and ENOUGH in ends
            far.close()
    assert hall.counted() == {}


async def test_who_should_end_the_line_and_says_more_instead_has_cut_it(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        far = await hall.dial(hall.address(tls), ticket.id)
        near = await ticket.line
        await asyncio.to_thread(far.send, b"more")
        with pytest.raises(TransportError, match="before the other side had all"):
            await hall.server.carry(near, near.wait_for_end)
        far.close()


async def test_a_line_whose_caller_is_cancelled_ends_at_both_ends_at_once(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        far = await hall.dial(hall.address(tls), ticket.id)
        near = await ticket.line
        reading = asyncio.create_task(hall.server.carry(near, lambda: near.receive_into(memoryview(bytearray(9)))))
        await asyncio.to_thread(far.send, b"abc")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await asyncio.to_thread(far.receive_into, memoryview(bytearray(1))) == 0
        far.close()


async def test_a_large_block_is_sent_in_parts_so_that_a_slow_line_is_no_stalled_one() -> None:
    parts = []

    class Secured:
        def sendall(self, data: memoryview) -> None:
            parts.append(len(data))

    Line(Secured()).send(bytes(lines.BLOCK_BYTES + 1))  # type: ignore[arg-type]
    assert sum(parts) == lines.BLOCK_BYTES + 1
    assert max(parts) <= lines.BLOCK_BYTES // 4


# --- strangers


async def _says(hall: Hall, data: bytes) -> None:
    reader, writer = await hall.stranger()
    writer.write(data)
    with suppress(ConnectionError):
        await reader.read()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def _leaves(hall: Hall) -> None:
    _, writer = await hall.stranger()
    writer.close()
    await writer.wait_closed()


async def _greets(hall: Hall, tls: TlsFiles | None, alpn: str | None = lines.ALPN, said: bytes = b"") -> None:
    """Shake hands as somebody, say something, and wait to be shut out."""
    if tls is None:
        context = ssl.create_default_context(cadata=hall.lab.authority.certificate_pem.decode())
        context.set_alpn_protocols([lines.ALPN])
    else:
        context = client_context(tls, alpn or "http/1.1")
        context.load_verify_locations(cadata=hall.lab.authority.certificate_pem.decode())
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", hall.server.port, ssl=context, server_hostname=hall.lab.server_name
        )
        try:
            writer.write(said or lines.GREETING.pack(bytes(lines.TICKET_BYTES), ENOUGH))
            assert await reader.read() == b""
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _foreign(hall: Hall) -> TlsFiles:
    folder = hall.lab.folder / "foreign"
    authority = CertificateAuthority.create(FederationName("heart"), folder / "ca", now=hall.lab.clock.now())
    issue_identity(authority, hall.lab.identity(Role.ENVOY, "north"), folder / "north", now=hall.lab.clock.now())
    return TlsFiles.in_folder(folder / "north")


async def _expired(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north", lifetime_s=60.0)
    hall.lab.clock.jump(61)
    await _greets(hall, tls)
    hall.lab.clock.jump(-61)


async def _revoked(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    revoke(hall.lab.folder / "revoked.txt", hall.peer(tls).serial)
    await _greets(hall, tls)


STRANGERS: dict[str, tuple[Callable[[Hall], Any], CallRefusal]] = {
    "plaintext": (lambda hall: _says(hall, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), CallRefusal.HANDSHAKE),
    "garbage": (lambda hall: _says(hall, b"\x16\x03\x01\xff\xff" + bytes(200)), CallRefusal.HANDSHAKE),
    "leaves": (_leaves, CallRefusal.HANDSHAKE),
    "no certificate": (lambda hall: _greets(hall, None), CallRefusal.HANDSHAKE),
    "another protocol": (lambda hall: _greets(hall, hall.lab.issue(Role.ENVOY, "n"), None), CallRefusal.HANDSHAKE),
    "foreign authority": (lambda hall: _greets(hall, _foreign(hall)), CallRefusal.HANDSHAKE),
    "half a greeting": (lambda hall: _half(hall), CallRefusal.HANDSHAKE),
    "wrong role": (lambda hall: _greets(hall, hall.lab.issue(Role.USER, "ada")), CallRefusal.WRONG_ROLE),
    "expired": (_expired, CallRefusal.EXPIRED),
    "revoked": (_revoked, CallRefusal.REVOKED),
    "two identities": (
        lambda hall: _greets(hall, hall.lab.forge("spiffe://heart/envoy/n", "spiffe://heart/envoy/s")),
        CallRefusal.NOT_ONE_IDENTITY,
    ),
    "another federation": (
        lambda hall: _greets(hall, hall.lab.forge("spiffe://lungs/envoy/n")),
        CallRefusal.FOREIGN_FEDERATION,
    ),
    "made-up ticket": (lambda hall: _greets(hall, hall.lab.issue(Role.ENVOY, "north")), CallRefusal.NO_TICKET),
}


async def _half(hall: Hall) -> None:
    context = client_context(hall.lab.issue(Role.ENVOY, "north"), lines.ALPN)
    _, writer = await asyncio.open_connection(
        "127.0.0.1", hall.server.port, ssl=context, server_hostname=hall.lab.server_name
    )
    writer.write(b"half")
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize("who", STRANGERS)
async def test_a_stranger_is_shut_out_and_counted_and_leaves_nothing_open(hall: Hall, who: str) -> None:
    comes, refusal = STRANGERS[who]
    before = open_files()
    await comes(hall)
    await hall.settled()
    assert hall.counted() == {refusal.value: 1}
    assert open_files() <= before


# --- tickets


async def test_a_ticket_is_good_once(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        line = await hall.dial(hall.address(tls), ticket.id)
        await hall.refused(hall.address(tls), ticket.id)
        line.close()
    assert hall.counted() == {"no_ticket": 1}


async def test_a_ticket_that_another_shows_stays_good_for_its_owner(hall: Hall) -> None:
    tls, other = (hall.lab.issue(Role.ENVOY, name) for name in ("north", "south"))
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        await hall.refused(hall.address(other), ticket.id)
        assert hall.counted() == {"not_itself": 1}
        await hall.reached(hall.address(tls), ticket)


async def test_a_ticket_is_for_the_certificate_of_its_call_and_not_for_a_renewed_one(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    peer, dialled_with = hall.peer(tls), hall.address(tls)
    hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(peer, ENOUGH) as ticket:
        await hall.refused(hall.address(tls), ticket.id)
        assert hall.counted() == {"not_itself": 1}
        await hall.reached(dialled_with, ticket)


async def test_a_ticket_with_the_wrong_count_stays_good_for_the_right_one(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        await hall.refused(hall.address(tls), ticket.id, ENOUGH + 1)
        assert hall.counted() == {"malformed": 1}
        await hall.reached(hall.address(tls), ticket)


async def test_a_ticket_that_nobody_says_lapses_and_one_given_back_is_no_ticket(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        hall.lab.clock.advance(CLAIM_S)
        await hall.refused(hall.address(tls), ticket.id)
        with pytest.raises(TransportError, match="nobody said the ticket"):
            await ticket.line
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        pass
    await hall.refused(hall.address(tls), ticket.id)
    assert hall.counted() == {"no_ticket": 2}


async def test_whoever_waits_for_a_line_and_is_cancelled_leaves_no_ticket(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        waiting = asyncio.create_task(_of(ticket))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await hall.refused(hall.address(tls), ticket.id)


async def _of(ticket: Ticket) -> Line:
    return await ticket.line


async def test_a_line_that_came_as_its_call_ended_is_closed_with_the_ticket(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        line = await hall.dial(hall.address(tls), ticket.id)
        assert ticket.has_line
    assert await asyncio.to_thread(line.receive_into, memoryview(bytearray(1))) == 0
    line.close()


async def test_there_are_so_many_tickets_and_of_one_site_fewer(hall: Hall) -> None:
    with ExitStack() as stack:
        given = []
        for index in range(MOST_LINES // MOST_OF_ONE):
            peer = hall.peer(hall.lab.issue(Role.ENVOY, f"site-{index}"))
            given += [stack.enter_context(hall.server.issue(peer, ENOUGH)) for _ in range(MOST_OF_ONE)]
            assert stack.enter_context(hall.server.issue(peer, ENOUGH)) is None
        assert len({ticket.id for ticket in given}) == MOST_LINES
        late = hall.peer(hall.lab.issue(Role.ENVOY, "late"))
        assert stack.enter_context(hall.server.issue(late, ENOUGH)) is None
    with hall.server.issue(late, lines.LEAST_BYTES) as ticket:
        assert ticket is None, "it fits in one chunk of a call"
    with hall.server.issue(late, ENOUGH) as ticket:
        assert ticket is not None


# --- what a stranger costs


async def test_who_says_nothing_is_shut_out_after_a_while(hall: Hall) -> None:
    reader, writer = await hall.stranger()
    await hall.lab.clock.until_waiting()
    hall.lab.clock.advance(GREETING_S)
    assert await reader.read() == b""
    assert hall.counted() == {"handshake": 1}
    writer.close()
    await writer.wait_closed()


async def test_a_flood_of_silent_strangers_does_not_keep_a_site_from_its_line(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    async with AsyncExitStack() as stack:
        crowd = []
        for _ in range(MOST_GREETINGS + 3):
            reader, writer = await hall.stranger()
            stack.callback(writer.close)
            crowd.append(reader)
        with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
            await hall.reached(hall.address(tls), ticket)
        for reader in crowd[:4]:
            assert await reader.read() == b"", "who was longest silent"
        assert hall.counted() == {"handshake": 4}
        assert not crowd[4].at_eof()


async def test_a_server_that_stops_shuts_everyone_out(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    before = open_files()
    reader, writer = await hall.stranger()
    await hall.lab.clock.until_waiting()
    address = hall.address(tls)
    port = hall.server.port
    await hall.server.stop()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        assert ticket is None
    with pytest.raises(NoLineError, match=f"no line to 127.0.0.1:{port}"):
        await hall.dial(address, bytes(16))
    assert open_files() < before


async def test_who_stops_in_the_moment_in_which_somebody_dials_leaves_nothing_open(lab: Any) -> None:
    made = Hall(lab)
    before = open_files()
    await made.server.start([0])
    with socket.create_connection(("127.0.0.1", made.server.port)) as dialled:
        await lab.clock.until_waiting()
        await made.server.stop()
        assert dialled.recv(1) == b""
    assert open_files() <= before


# --- where


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "dialled"),
    [(ANYWHERE, "127.0.0.1"), (ANYWHERE, "::1"), ("::", "127.0.0.1"), ("::1", "::1"), ("localhost", "localhost")],
)
async def test_anywhere_is_every_family_of_addresses_as_it_is_for_calls(hall: Hall, host: str, dialled: str) -> None:
    server = hall.made(host)
    assert await server.start([0])
    tls = hall.lab.issue(Role.ENVOY, "north")
    with server.issue(hall.peer(tls), ENOUGH) as ticket:
        await hall.reached(hall.address(tls, dialled, server), ticket)
    await server.stop()


async def test_the_first_free_port_of_a_range_is_taken_and_none_if_there_is_none(hall: Hall) -> None:
    taken = hall.server.port
    server = hall.made("127.0.0.1")
    assert await server.start([taken]) == 0 == server.port
    await server.stop()
    assert await server.start([taken, 0]) not in (0, taken)
    await server.stop()
    assert await hall.made("127.0.0.1", tls=None).start([0]) == 0


async def test_a_renewed_certificate_is_shown_from_the_next_line_on(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    seen = []
    for _ in range(2):
        context = client_context(tls, lines.ALPN)
        _, writer = await asyncio.open_connection(
            "127.0.0.1", hall.server.port, ssl=context, server_hostname=hall.lab.server_name
        )
        seen.append(writer.get_extra_info("peercert")["serialNumber"])
        writer.transport.abort()
        hall.lab.issue(Role.DIRECTOR, "director")
    assert seen[0] != seen[1]


async def test_text_beside_the_authoritys_certificate_does_no_harm(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    tls.authority.write_bytes("Behörde der Föderation\n".encode() + tls.authority.read_bytes())
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        await hall.reached(hall.address(tls), ticket)


# --- what answers at a port that is not ours


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["closes", "speaks plaintext"])
async def test_something_else_at_the_port_means_that_there_is_no_line(hall: Hall, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        address = BulkAddress(
            "127.0.0.1",
            other.sockets[0].getsockname()[1],
            server_name=hall.lab.server_name,
            tls=hall.lab.issue(Role.ENVOY, "north"),
        )
        with pytest.raises(NoLineError):
            await hall.dial(address, bytes(16))


async def test_the_wrong_server_is_not_told_the_ticket(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    address = BulkAddress("127.0.0.1", hall.server.port, server_name="another.heart.internal", tls=tls)
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        with pytest.raises(NoLineError, match=r"another\.heart\.internal"):
            await hall.dial(address, ticket.id)
        await hall.reached(hall.address(tls), ticket)


async def test_who_is_stopped_while_a_port_never_answers_leaves_at_once(hall: Hall, monkeypatch: Any) -> None:
    monkeypatch.setattr(lines, "DIAL_S", 3600.0)
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        silent.setblocking(False)
        address = BulkAddress(
            "127.0.0.1",
            silent.getsockname()[1],
            server_name=hall.lab.server_name,
            tls=hall.lab.issue(Role.ENVOY, "north"),
        )
        dialling = asyncio.create_task(hall.dial(address, bytes(16)))
        taken, _ = await asyncio.get_running_loop().sock_accept(silent)
        with taken:
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling


async def test_a_line_that_was_cut_before_it_was_dialled_is_not_dialled(hall: Hall) -> None:
    line = Line()
    line.cut()
    with pytest.raises(TransportError, match="cut on this side"):
        await asyncio.to_thread(hall.address(hall.lab.issue(Role.ENVOY, "north")).dial, line, bytes(16), ENOUGH)
    line.close()


async def test_a_dialler_takes_refused_tickets_for_cuts_until_the_third_in_a_row(hall: Hall, caplog: Any) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    dialler = BulkDialler(hall.address(tls), hall.lab.clock)

    async def refused(times: int) -> None:
        for _ in range(times):
            assert dialler.is_usable
            with pytest.raises(LineRefusedError):
                await dialler.carry(bytes(16), ENOUGH, lambda _: None)

    await refused(2)
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        await dialler.carry(ticket.id, ENOUGH, lambda _: None)
    await refused(3)
    assert not dialler.is_usable
    assert [record.getMessage()[:25] for record in caplog.records if "inside calls" in record.getMessage()] == [
        "large payloads travel ins"
    ]


async def test_a_dialler_that_got_no_line_tries_again_after_a_while_and_warns_once(hall: Hall, caplog: Any) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    dialler = BulkDialler(hall.address(tls), hall.lab.clock)
    port = hall.server.port
    await hall.server.stop()
    for _ in range(2):
        with pytest.raises(NoLineError):
            await dialler.carry(bytes(16), ENOUGH, lambda _: None)
        hall.lab.clock.advance(AGAIN_S - 1)
        assert not dialler.is_usable
        hall.lab.clock.advance(1)
        assert dialler.is_usable
    assert len([record for record in caplog.records if "inside calls" in record.getMessage()]) == 1
    assert await hall.server.start([port]) == port
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        await dialler.carry(ticket.id, ENOUGH, lambda _: None)
