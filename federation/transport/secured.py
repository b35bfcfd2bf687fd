"""Mutual TLS 1.3 on a socket, for lines: through pyOpenSSL, with the errors that Python's own `ssl` raises.

Why not Python's own: it takes the OpenSSL of the system. That of `cryptography`, which pyOpenSSL takes, is of this
year, and uses what processors have gained since (docs/adr/0016-tls-of-lines.md; benchmarks/README says how much).

Rules:

1. TLS 1.3; both sides show a certificate of the federation's authority, and no session is resumed. A client checks
   that the server's name is one of its certificate's, letter by letter.
2. Files are taken as they are when a client's context is made, and looked at before each handshake of a server.
3. A connection is handed over non-blocking, for an event loop, or blocks for so many seconds without a byte. A signal
   does not end the wait, nor does a buffer that empties slowly: who sends waits on while the other side takes bytes.
4. Ended by the other side without a word is an end, as for Python's own; reset is an error, as it is not there before
   3.11.9.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import ssl
import struct
from typing import TYPE_CHECKING, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

from federation.errors import ConfigurationError
from federation.transport.credentials import UNREADABLE

try:
    from OpenSSL._util import ffi, lib
except ImportError:  # pragma: no cover  # pyOpenSSL promises nothing about it
    ffi = lib = None

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.transport.credentials import TlsFiles, TlsMaterial

_T = TypeVar("_T")

_PARTIAL_WRITE = 0x1
"""SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets: it would come back to Python after each record of 16 KiB."""
_RECORD_BYTES = 16 << 10
_MOST_BYTES = 1 << 30
"""OpenSSL counts in an int."""
_WANTS = (SSL.WantReadError, SSL.WantWriteError)


def _was_interrupted() -> bool:
    """Whether a signal, or being stopped or traced, ended this thread's last wait: the kernel leaves it to us."""
    return ffi is not None and ffi.errno == errno.EINTR


class DirectConnection(SSL.Connection):
    """A connection that OpenSSL reads straight into the caller's memory.

    pyOpenSSL's `recv_into` copies each record, and calls OpenSSL twice for it: no quicker than Python's own TLS.
    """

    def fill(self, view: memoryview) -> int:
        """Read until `view` is full; returns how many bytes came: fewer only if the connection ended or failed."""
        memory = ffi.from_buffer("char[]", view, require_writable=True)
        place, left = memory + 0, len(view)
        read, connection = lib.SSL_read, self._ssl  # looked up once: a call for each record is most that Python does
        while left:
            came = read(connection, place, min(left, _MOST_BYTES))
            if came > 0:
                place += came
                left -= came
                continue
            try:
                self._raise_ssl_error(connection, came)  # takes the error from the thread's list as well
            except _WANTS:
                if _was_interrupted():
                    continue
            except SSL.Error:
                pass
            break
        return len(view) - left


class CopyingConnection(SSL.Connection):
    """The same with what pyOpenSSL promises, for a release of it that has no such insides."""

    def fill(self, view: memoryview) -> int:
        """As `DirectConnection.fill`."""
        got = 0
        while got < len(view):
            try:
                got += self.recv_into(view[got:], min(_RECORD_BYTES, len(view) - got))
            except _WANTS:
                if not _was_interrupted():
                    break
            except SSL.Error:
                break
        return got


_has_insides = lib is not None and hasattr(SSL.Connection, "_raise_ssl_error")
_connection = DirectConnection if _has_insides else CopyingConnection


class _EndedError(ConnectionAbortedError):
    """The other side has ended the connection, with or without a word."""


class SecuredSocket:
    """One end of a TLS connection. For one thread at a time; whoever made `plain` closes it.

    Args:
        context: of `client_context` or `following_context`.
        plain: a connected socket.
        server_name: name that the server's certificate must carry; None: this end is the server.

    Attributes:
        plain: likewise.
    """

    def __init__(self, context: SSL.Context, plain: socket.socket, *, server_name: str | None = None) -> None:
        self.plain = plain
        self._server_name = server_name
        self._taken = b""
        self._connection = _connection(context, plain)
        if _has_insides:  # else whoever sends keys without end would hold an event loop within one call
            lib.SSL_clear_mode(self._connection._ssl, lib.SSL_MODE_AUTO_RETRY)
        if server_name is None:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
            self._connection.set_tlsext_host_name(server_name.encode())

    def fileno(self) -> int:
        """Return the descriptor of the socket, for an event loop."""
        return self.plain.fileno()

    def block(self, longest_s: float) -> None:
        """Wait in each call from now on, and for so long without a byte. The kernel counts, so no call costs two."""
        self.plain.setblocking(True)
        if _has_insides:
            lib.SSL_set_mode(self._connection._ssl, lib.SSL_MODE_AUTO_RETRY)
        limit = struct.pack("@ll", int(longest_s), round(longest_s % 1 * 1e6))
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._taken = self._taken_bytes()

    def shake_hands(self) -> None:
        """Agree on keys and certificates.

        Raises:
            OSError: it failed, or the server is not who it should be; `ssl.SSLWantReadError` and
                `ssl.SSLWantWriteError` where the socket does not block.
        """
        self._step(self._connection.do_handshake)
        if self._server_name is not None and self._server_name not in self.names(x509.DNSName):
            reason = f"the other side's certificate is not of {self._server_name}"
            raise ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, reason)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it.

        Raises:
            OSError: the connection ended, or stalled; as `shake_hands`.
        """
        view = memoryview(data).cast("B")
        while view:
            view = view[self._step(functools.partial(self._connection.send, view[:_MOST_BYTES])) :]

    def receive(self, nbytes: int) -> bytes:
        """Return up to so many bytes, none at the end.

        Raises:
            OSError: the connection was reset, or stalled; as `shake_hands`.
        """
        with contextlib.suppress(_EndedError):
            return self._step(functools.partial(self._connection.recv, nbytes))
        return b""

    def fill(self, view: memoryview) -> int:
        """Read until `view` is full. Returns how many bytes came: fewer only if the connection ended or stalled."""
        return self._connection.fill(view.cast("B"))

    @property
    def version(self) -> str:
        """Which TLS it is, as ``TLSv1.3``."""
        return self._connection.get_protocol_version_name()

    @property
    def protocol(self) -> str | None:
        """Which protocol both sides mean (ALPN), if they agreed on one."""
        return self._connection.get_alpn_proto_negotiated().decode("ascii", "replace") or None

    @property
    def certificate(self) -> x509.Certificate | None:
        """What the other side showed; checked against the authority, and nothing else.

        Raises:
            OSError: OpenSSL takes it, and `cryptography` cannot read it.
        """
        try:
            return self._connection.get_peer_certificate(as_cryptography=True)
        except UNREADABLE as error:
            reason = f"the other side's certificate cannot be read: {error}"
            raise ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, reason) from error

    def names(self, kind: type[x509.DNSName | x509.UniformResourceIdentifier]) -> list[str]:
        """Return the names of one kind that the other side's certificate carries."""
        certificate = self.certificate
        if certificate is None:
            return []
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except UNREADABLE:
            return []
        return names.get_values_for_type(kind)

    def _step(self, step: Callable[[], _T]) -> _T:
        """Return what `step` returns: it is repeated while it may go on, and its errors are Python's own."""
        while True:
            try:
                return step()
            except SSL.WantReadError:
                wanted: OSError = ssl.SSLWantReadError()
            except SSL.WantWriteError:
                wanted = ssl.SSLWantWriteError()
            except SSL.ZeroReturnError:
                raise _EndedError("the other side ended the connection") from None
            except SSL.SysCallError as error:
                number, text = error.args
                raise _EndedError("the connection ended") if number < 0 else OSError(number, text) from None
            except SSL.Error as error:
                reasons = [reason for _, _, reason in error.args[0]] if error.args else []
                reasons += self._verdict()
                raise ssl.SSLError(ssl.SSL_ERROR_SSL, ", ".join(reasons) or "TLS failed") from None
            if self.plain.gettimeout() == 0:
                raise wanted
            if not self._may_go_on():
                raise TimeoutError("nothing moved for too long")

    def _verdict(self) -> list[str]:
        """Return why the other side's certificate was refused, if it was: pyOpenSSL tells no more than that."""
        number = lib.SSL_get_verify_result(self._connection._ssl) if _has_insides else 0
        return [ffi.string(lib.X509_verify_cert_error_string(number)).decode()] if number else []

    def _may_go_on(self) -> bool:
        """Tell a wait that was interrupted, or in which the other side took something, from one in vain.

        The kernel wakes whoever sends once a third of its buffer is free: over a slow line that can take longer.
        """
        before = self._taken
        self._taken = self._taken_bytes()
        return _was_interrupted() or self._taken != before

    def _taken_bytes(self) -> bytes:
        """Return a count of what the other side has acknowledged (tcpi_bytes_acked, Linux)."""
        return self.plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)[120:]


def client_context(tls: TlsFiles, alpn: str) -> SSL.Context:
    """Return what dials with the files as they are now.

    Args:
        tls: the client's files.
        alpn: protocol it speaks; whether the server speaks it too, who uses the connection looks.

    Raises:
        ConfigurationError: as `TlsFiles.load`, or OpenSSL refuses them.
    """
    context = _context(tls, SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos([alpn.encode()])
    return context


def following_context(tls: TlsFiles, alpn: str) -> Callable[[], SSL.Context]:
    """Return what gives the context for a server's next handshake: client certificates demanded, files followed.

    Args:
        tls: the server's files.
        alpn: as `client_context`.

    Raises:
        ConfigurationError: as `client_context`.
    """

    def select(_: SSL.Connection, offered: list[bytes]) -> bytes | SSL._NoOverlappingProtocols:
        return alpn.encode() if alpn.encode() in offered else SSL.NO_OVERLAPPING_PROTOCOLS

    def make() -> SSL.Context:
        context = _context(tls, SSL.TLS_SERVER_METHOD)
        context.set_alpn_select_callback(select)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)  # what a client is sent anyway names a session that nobody keeps
        return context

    marks = tls.marks()
    present = make()

    def follow() -> SSL.Context:
        nonlocal marks, present
        seen = tls.marks()
        if seen != marks:
            with contextlib.suppress(ConfigurationError):  # half written: the next handshake looks again
                present = make()
                marks = seen
        return present

    return follow


def _context(tls: TlsFiles, method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.clear_mode(_PARTIAL_WRITE)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    try:
        _take(tls.load(), context)
    except (SSL.Error, crypto.Error, *UNREADABLE) as error:
        raise ConfigurationError(
            f"TLS does not take {tls.authority}, {tls.certificate} or {tls.key}: {error}; `federation pki issue` makes "
            "such files"
        ) from error
    return context


def _take(material: TlsMaterial, context: SSL.Context) -> None:
    trusted = cast("crypto.X509Store", context.get_cert_store())  # a context is made with one
    for authority in x509.load_pem_x509_certificates(material.authority):
        trusted.add_cert(crypto.X509.from_cryptography(authority))
    certificate, *chain = x509.load_pem_x509_certificates(material.certificate)
    context.use_certificate(certificate)
    for issuer in chain:
        context.add_extra_chain_cert(issuer)
    key = serialization.load_pem_private_key(material.key, None)
    context.use_privatekey(key)  # type: ignore[arg-type]  # it is a certificate's, so it signs
