"""TLS of lines by itself, with Python's own at the other end: bytes, ends, names, and what is not resumed."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from federation.errors import ConfigurationError
from federation.names import FederationName, Identity, Role, director_server_name
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.transport import lines, secured
from federation.transport.credentials import TlsFiles
from federation.transport.secured import SecuredSocket, client_context, following_context

from .line_halls import python_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ALPN = "probe/1"
HEART = FederationName("heart")
SERVER_NAME = director_server_name(HEART)
NBYTES = (3 << 20) + 17


class Ends:
    """Both ends of connections: ours at one of them, Python's own at the other."""

    def __init__(self, folder: Path) -> None:
        authority = CertificateAuthority.create(HEART, folder / "ca", now=time.time())
        for role, name in ((Role.DIRECTOR, "director"), (Role.ENVOY, "north")):
            identity = Identity(federation=HEART, role=role, name=name)
            issue_identity(authority, identity, folder / name, now=time.time())
        self.server, self.client = (TlsFiles.in_folder(folder / name) for name in ("director", "north"))
        self.follow = following_context(self.server, ALPN)
        self.opened: list[Any] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        self.opened += [near, far]
        return near, far

    def ours_as_server(self, context: ssl.SSLContext | None = None, **options: Any) -> tuple[SecuredSocket, Any]:
        near, far = self.pair()
        ours = SecuredSocket(self.follow(), near)
        ours.block(60)
        context = context or python_context(self.client, ALPN)
        return ours, self.both(
            ours.shake_hands, lambda: context.wrap_socket(far, server_hostname=SERVER_NAME, **options)
        )

    def ours_as_client(
        self, server_name: str = SERVER_NAME, *, blocks: bool = True, tickets: int = 0
    ) -> tuple[SecuredSocket, Any]:
        near, far = self.pair()
        near.setblocking(False)
        ours = SecuredSocket(client_context(self.client, ALPN), near, server_name=server_name)
        if blocks:
            ours.block(60)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols([ALPN])
        context.num_tickets = tickets
        context.load_cert_chain(self.server.certificate, self.server.key)
        context.load_verify_locations(self.server.authority)
        context.verify_mode = ssl.CERT_REQUIRED
        return ours, self.both(
            lambda: lines._in_time(ours, time.monotonic() + 60, ours.shake_hands),
            lambda: context.wrap_socket(far, server_side=True),
        )

    def both(self, ours: Callable[[], object], theirs: Callable[[], Any]) -> Any:
        """Run both at once, and return what theirs returns."""
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(theirs)
            other.add_done_callback(lambda done: done.exception() or self.opened.append(done.result()))
            ours()
            return other.result()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    for each in made.opened:
        each.close()


@pytest.mark.parametrize("connection", [secured.DirectConnection, secured.CopyingConnection])
@pytest.mark.parametrize("side", [Ends.ours_as_server, Ends.ours_as_client])
def test_bytes_arrive_as_they_were_sent_both_ways(ends: Ends, side: Any, connection: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(secured, "_connection", connection)
    ours, theirs = side(ends)
    assert (ours.version, ours.protocol, theirs.selected_alpn_protocol()) == ("TLSv1.3", ALPN, ALPN)
    data, came, back = os.urandom(NBYTES), memoryview(bytearray(NBYTES)), bytearray()

    def answer() -> None:
        theirs.sendall(data)
        while len(back) < NBYTES:
            back.extend(theirs.recv(1 << 16))

    thread = threading.Thread(target=answer)
    thread.start()
    assert (ours.fill(came[:1]), ours.fill(came[1:])) == (1, NBYTES - 1)
    ours.send(came)
    thread.join()
    assert bytes(came) == data == bytes(back)


@pytest.mark.parametrize("connection", [secured.DirectConnection, secured.CopyingConnection])
@pytest.mark.parametrize("stalls", [False, True])
def test_what_came_before_an_end_or_a_stall_is_not_lost(
    ends: Ends, connection: Any, stalls: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(secured, "_connection", connection)
    ours, theirs = ends.ours_as_server()
    ours.send(b"w")
    assert theirs.recv(1) == b"w"  # and what the server says of sessions: unread, it would make the end a reset
    theirs.sendall(b"abc")
    if stalls:
        ours.block(0.05)
    else:
        theirs.close()
    came = memoryview(bytearray(9))
    assert ours.fill(came) == 3
    assert bytes(came[:3]) == b"abc"


def test_a_reset_is_an_error_and_no_end(ends: Ends) -> None:
    ours, theirs = ends.ours_as_server()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with pytest.raises(ConnectionResetError):
        ours.receive(1)


def test_an_end_without_a_word_is_an_end(ends: Ends) -> None:
    ours, theirs = ends.ours_as_client()
    theirs.close()
    assert ours.receive(1) == b""


def test_an_end_with_a_word_is_an_end(ends: Ends) -> None:
    ours, theirs = ends.ours_as_server()
    theirs.settimeout(0.0)
    with pytest.raises(ssl.SSLWantReadError):
        theirs.unwrap()  # it is said, and not answered
    assert ours.receive(1) == b""


@pytest.fixture
def interrupts() -> Iterator[Callable[[threading.Thread], None]]:
    """What gives a thread a signal, as does who traces or stops a process."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    yield lambda thread: signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("connection", [secured.DirectConnection, secured.CopyingConnection])
def test_signals_end_no_wait(ends: Ends, interrupts: Any, connection: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(secured, "_connection", connection)
    ours, theirs = ends.ours_as_server()
    data, came, back = os.urandom(16 << 20), memoryview(bytearray(50)), bytearray()

    def work() -> None:
        ours.fill(came)
        ours.send(data)

    thread = threading.Thread(target=work)
    thread.start()
    for each in range(50):
        interrupts(thread)
        theirs.sendall(bytes([each]))
    for _ in range(50):
        interrupts(thread)
        back.extend(theirs.recv(1000))
    while part := theirs.recv(1 << 16) if len(back) < len(data) else b"":
        back.extend(part)
    thread.join()
    assert bytes(came) == bytes(range(50)) and back == data


def test_who_sends_waits_on_while_the_other_side_takes_bytes(ends: Ends, monkeypatch: Any) -> None:
    ours, theirs = ends.ours_as_server()
    ours.block(0.05)
    looks, look = [], ours._taken_bytes

    def read_from_now_on() -> bytes:
        looks.append(0)
        ours.plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bytes(16))
        reader.start()
        return look()

    def read() -> None:
        nbytes = 0
        while nbytes < 16 << 20:
            nbytes += len(theirs.recv(1 << 16))

    reader = threading.Thread(target=read)
    monkeypatch.setattr(ours, "_taken_bytes", read_from_now_on)
    ours.send(bytes(16 << 20))
    reader.join()
    assert looks == [0], "it had to wait, and the other side's buffer had taken some"


@pytest.mark.parametrize("items", ["B", "I"])
@pytest.mark.parametrize("connection", [secured.DirectConnection, secured.CopyingConnection])
def test_there_may_be_more_to_fill_than_an_int_holds(ends: Ends, connection: Any, items: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(secured, "_connection", connection)
    ours, theirs = ends.ours_as_client()
    theirs.sendall(b"abc")
    theirs.close()
    with mmap.mmap(-1, (2 << 30) + 4) as room, memoryview(room) as view, view.cast(items) as wide:
        assert ours.fill(wide) == 3
        assert room[:4] == b"abc\0"


@pytest.mark.parametrize("step", ["receive", "send"])
def test_what_stalls_is_cut(ends: Ends, step: str) -> None:
    ours, _ = ends.ours_as_server()
    ours.block(0.05)
    with pytest.raises(TimeoutError, match="nothing moved"):
        ours.receive(1) if step == "receive" else ours.send(bytes(64 << 20))


def test_nothing_is_waited_for_where_the_socket_does_not_block(ends: Ends) -> None:
    near, _ = ends.pair()
    near.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        SecuredSocket(ends.follow(), near).shake_hands()


def test_what_an_event_loop_is_sent_beside_the_payload_it_takes_turn_by_turn(ends: Ends) -> None:
    ours, theirs = ends.ours_as_client(blocks=False, tickets=9)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    theirs.sendall(b"x")  # all of it has come now
    for _ in range(9):  # whatever it was told of sessions
        with pytest.raises(ssl.SSLWantReadError):
            ours.receive(1)
    assert ours.receive(1) == b"x"


def test_a_server_of_another_name_is_refused(ends: Ends) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"is not of other\.internal"):
        ends.ours_as_client("other.internal")


def test_why_a_certificate_is_refused_is_said(ends: Ends) -> None:
    long_ago, folder = time.time() - 1000, ends.client.key.parent
    authority = CertificateAuthority.load(folder.parent / "ca")
    issue_identity(authority, ends.client.facts().identity, folder, now=long_ago, lifetime_s=60, force=True)
    with pytest.raises(ssl.SSLError, match="certificate has expired"):
        ends.ours_as_server()


def test_an_older_tls_is_refused_and_the_reason_said(ends: Ends) -> None:
    context = python_context(ends.client, ALPN)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="unsupported protocol"):
        ends.ours_as_server(context)


def test_files_that_tls_does_not_take_are_named_and_passed_over_until_they_are_whole(ends: Ends) -> None:
    whole = ends.server.authority.read_bytes()
    ends.server.authority.write_bytes(whole + b"-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigurationError, match=r"TLS does not take .*ca\.pem"):
        client_context(ends.server, ALPN)
    assert ends.ours_as_server()[0].version == "TLSv1.3"
    ends.server.authority.write_bytes(whole)
    assert ends.ours_as_server()[0].version == "TLSv1.3"


def test_no_session_is_resumed(ends: Ends) -> None:
    context = python_context(ends.client, ALPN)
    ours, theirs = ends.ours_as_server(context)
    ours.send(b"x")
    theirs.recv(1)  # and what the server says of sessions
    ours, again = ends.ours_as_server(context, session=theirs.session)
    ours.send(b"x")
    again.recv(1)
    assert not again.session_reused
