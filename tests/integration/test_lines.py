"""Lines for large payloads by themselves: bytes, where they are taken, and what else may be at the port."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from federation.collaborator.link import AGAIN_S, BulkDialler
from federation.errors import TransportError
from federation.names import Role
from federation.transport import lines
from federation.transport.lines import BulkAddress, Line, LineRefusedError, NoLineError, carried

from .line_halls import ENOUGH, Hall, python_context

ANYWHERE = "0.0.0.0"  # noqa: S104


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
        context = python_context(tls, lines.ALPN)
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


def _address_of(hall: Hall, port: int) -> BulkAddress:
    """Return the address of what is no server of lines, as a site would have it."""
    tls = hall.lab.issue(Role.ENVOY, "north")
    return BulkAddress("127.0.0.1", port, server_name=hall.lab.server_name, tls=tls)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["closes", "speaks plaintext"])
async def test_something_else_at_the_port_means_that_there_is_no_line(hall: Hall, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        address = _address_of(hall, other.sockets[0].getsockname()[1])
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
        address = _address_of(hall, silent.getsockname()[1])
        dialling = asyncio.create_task(hall.dial(address, bytes(16)))
        taken, _ = await asyncio.get_running_loop().sock_accept(silent)
        with taken:
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling


async def test_a_port_that_says_little_by_little_means_that_there_is_no_line(hall: Hall, monkeypatch: Any) -> None:
    # Each look at the clock is two seconds later: what counts is that the bytes do not begin the limit anew.
    monkeypatch.setattr(lines, "time", SimpleNamespace(monotonic=itertools.count(step=2).__next__))
    record_begins, is_over = b"\x16\x03\x03\x40\x00\x02", asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for byte in record_begins + bytes(1 << 14):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        is_over.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        address = _address_of(hall, other.sockets[0].getsockname()[1])
        with pytest.raises(NoLineError, match="takes too long"):
            await hall.dial(address, bytes(16))
        await is_over.wait()


async def test_a_line_that_was_given_up_is_not_written_to_whatever_has_its_number_now(hall: Hall) -> None:
    tls = hall.lab.issue(Role.ENVOY, "north")
    with hall.server.issue(hall.peer(tls), ENOUGH) as ticket:
        line = await hall.dial(hall.address(tls), ticket.id)
        number = line._open().fileno()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            line.close()
            os.dup2(ours.fileno(), number)
            with pytest.raises(TransportError, match="cut on this side"):
                line.send(b"x")
            os.close(number)
            ours.close()
            assert theirs.recv(1) == b""


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
