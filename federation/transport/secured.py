"""Mutual TLS 1.3 on a socket, for lines: through pyOpenSSL, with the errors that Python's own `ssl` raises.

Why not Python's own: it takes the OpenSSL of the system. That of `cryptography`, which pyOpenSSL takes, is of this
year, and uses what processors have gained since (docs/adr/0016-tls-of-lines.md; benchmarks/README says how much).

Rules:

1. TLS 1.3; both sides show a certificate of the federation's authority, and no session is resumed. A client checks
   that the server's name is one of its certificate's, letter by letter.
2. Files are taken as they are when a client's context is made, and looked at before each handshake of a server.
3. A connection is handed over non-blocking, for an event loop, or blocks for so many seconds without a byte.
4. Ended by the other side without a word is an end, as for Python's own; reset is an error, as it is not there before
   3.11.9.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from typing import TYPE_CHECKING, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

from federation.errors import ConfigurationError

try:
    from OpenSSL._util import ffi, lib
except ImportError:  # pragma: no cover  # pyOpenSSL promises nothing about it
    ffi = lib = None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.transport.credentials import TlsFiles, TlsMaterial

_PARTIAL_WRITE = 0x1
"""SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets: it would come back to Python after each record of 16 KiB."""
_RECORD_BYTES = 16 << 10


class DirectConnection(SSL.Connection):
    """A connection that OpenSSL reads straight into the caller's memory.

    pyOpenSSL's `recv_into` copies each record, and calls OpenSSL twice for it: no quicker than Python's own TLS.
    """

    def fill(self, view: memoryview) -> int:
        """Read until `view` is full; returns how many bytes came: fewer only if the connection ended or failed."""
        start, got = ffi.from_buffer(view, require_writable=True), 0
        while got < len(view):
            came = lib.SSL_read(self._ssl, start + got, len(view) - got)
            if came <= 0:
                with contextlib.suppress(SSL.Error):
                    self._raise_ssl_error(self._ssl, came)  # takes the error from the thread's list as well
                break
            got += came
        return got


class CopyingConnection(SSL.Connection):
    """The same with what pyOpenSSL promises, for a release of it that has no such insides."""

    def fill(self, view: memoryview) -> int:
        """As `DirectConnection.fill`."""
        got = 0
        with contextlib.suppress(SSL.Error):
            while got < len(view):
                got += self.recv_into(view[got:], min(_RECORD_BYTES, len(view) - got))
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
        self._connection = _connection(context, plain)
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
        limit = struct.pack("@ll", int(longest_s), round(longest_s % 1 * 1e6))
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def shake_hands(self) -> None:
        """Agree on keys and certificates.

        Raises:
            OSError: it failed, or the server is not who it should be; `ssl.SSLWantReadError` and
                `ssl.SSLWantWriteError` where the socket does not block.
        """
        with self._errors():
            self._connection.do_handshake()
        if self._server_name is not None and self._server_name not in self.names(x509.DNSName):
            reason = f"the other side's certificate is not of {self._server_name}"
            raise ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, reason)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it.

        Raises:
            OSError: the connection ended, or stalled; as `shake_hands`.
        """
        with self._errors():
            self._connection.sendall(data)

    def receive(self, nbytes: int) -> bytes:
        """Return up to so many bytes, none at the end.

        Raises:
            OSError: the connection was reset, or stalled; as `shake_hands`.
        """
        with contextlib.suppress(SSL.ZeroReturnError, _EndedError), self._errors():
            return self._connection.recv(nbytes)
        return b""

    def fill(self, view: memoryview) -> int:
        """Read until `view` is full. Returns how many bytes came: fewer only if the connection ended or stalled."""
        return self._connection.fill(view)

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
        """What the other side showed; checked against the authority, and nothing else."""
        return self._connection.get_peer_certificate(as_cryptography=True)

    def names(self, kind: type[x509.DNSName | x509.UniformResourceIdentifier]) -> list[str]:
        """Return the names of one kind that the other side's certificate carries."""
        certificate = self.certificate
        if certificate is None:
            return []
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound):
            return []
        return names.get_values_for_type(kind)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SSL.WantReadError:
            raise self._not_now(ssl.SSLWantReadError()) from None
        except SSL.WantWriteError:
            raise self._not_now(ssl.SSLWantWriteError()) from None
        except SSL.ZeroReturnError:
            raise _EndedError("the other side ended the connection") from None
        except SSL.SysCallError as error:
            number, text = error.args
            raise _EndedError("the connection ended") if number < 0 else OSError(number, text) from None
        except SSL.Error as error:
            reasons = [reason for _, _, reason in error.args[0]] if error.args else []
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, ", ".join(reasons) or "TLS failed") from None

    def _not_now(self, wanted: OSError) -> OSError:
        """Tell a socket that does not block from one that has waited as long as it may."""
        return wanted if self.plain.gettimeout() == 0 else TimeoutError("nothing moved for too long")


def client_context(tls: TlsFiles, alpn: str) -> SSL.Context:
    """Return what dials with the files as they are now.

    Args:
        tls: the client's files.
        alpn: protocol it speaks; whether the server speaks it too, who uses the connection looks.

    Raises:
        ConfigurationError: as `TlsFiles.load`.
    """
    context = _context(tls.load(), SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos([alpn.encode()])
    return context


def following_context(tls: TlsFiles, alpn: str) -> Callable[[], SSL.Context]:
    """Return what gives the context for a server's next handshake: client certificates demanded, files followed.

    Args:
        tls: the server's files.
        alpn: as `client_context`.

    Raises:
        ConfigurationError: as `TlsFiles.load`.
    """

    def select(_: SSL.Connection, offered: list[bytes]) -> bytes | SSL._NoOverlappingProtocols:
        return alpn.encode() if alpn.encode() in offered else SSL.NO_OVERLAPPING_PROTOCOLS

    def make() -> SSL.Context:
        context = _context(tls.load(), SSL.TLS_SERVER_METHOD)
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


def _context(material: TlsMaterial, method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.clear_mode(_PARTIAL_WRITE)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    trusted = cast("crypto.X509Store", context.get_cert_store())  # a context is made with one
    for authority in x509.load_pem_x509_certificates(material.authority):
        trusted.add_cert(crypto.X509.from_cryptography(authority))
    certificate, *chain = x509.load_pem_x509_certificates(material.certificate)
    context.use_certificate(certificate)
    for issuer in chain:
        context.add_extra_chain_cert(issuer)
    key = serialization.load_pem_private_key(material.key, None)
    context.use_privatekey(key)  # type: ignore[arg-type]  # it is a certificate's, so it signs
    return context
