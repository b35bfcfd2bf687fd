"""Who gets a line, who is refused and counted, and what a stranger costs."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from federation.errors import TransportError
from federation.names import FederationName, Role
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.keys import load_key_pem
from federation.pki.revocation import revoke
from federation.transport import lines
from federation.transport.authority import CallRefusal
from federation.transport.bulk import CLAIM_S, GREETING_S, MOST_GREETINGS, MOST_LINES, MOST_OF_ONE, Ticket
from federation.transport.credentials import TlsFiles
from federation.transport.lines import Line, NoLineError

if TYPE_CHECKING:
    from collections.abc import Callable

from .line_halls import ENOUGH, Hall, open_files, python_context


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
        context = python_context(tls, alpn or "http/1.1")
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


def _of_version_four(hall: Hall) -> TlsFiles:
    """A certificate that TLS takes, and whose reader refuses it."""
    tls = hall.lab.forge("spiffe://heart/envoy/n")
    body = x509.load_pem_x509_certificate(tls.certificate.read_bytes()).tbs_certificate_bytes
    body = body.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103"), 1)
    key = load_key_pem((hall.lab.folder / "ca" / "ca.key").read_bytes(), "ca")
    signature = key.sign(body, ec.ECDSA(hashes.SHA256()))
    body += bytes.fromhex("300a06082a8648ce3d040302") + bytes([3, len(signature) + 1, 0]) + signature
    pem = base64.encodebytes(b"\x30\x82" + len(body).to_bytes(2, "big") + body)
    tls.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + pem + b"-----END CERTIFICATE-----\n")
    return tls


X400_NAME = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("3004a3023000"))


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
    "a name of a kind that nobody reads": (
        lambda hall: _greets(hall, hall.lab.forge(names=X400_NAME)),
        CallRefusal.NOT_ONE_IDENTITY,
    ),
    "a certificate that nobody reads": (lambda hall: _greets(hall, _of_version_four(hall)), CallRefusal.HANDSHAKE),
    "another federation": (
        lambda hall: _greets(hall, hall.lab.forge("spiffe://lungs/envoy/n")),
        CallRefusal.FOREIGN_FEDERATION,
    ),
    "made-up ticket": (lambda hall: _greets(hall, hall.lab.issue(Role.ENVOY, "north")), CallRefusal.NO_TICKET),
}


async def _half(hall: Hall) -> None:
    context = python_context(hall.lab.issue(Role.ENVOY, "north"), lines.ALPN)
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
