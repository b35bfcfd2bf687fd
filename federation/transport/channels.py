"""Connections to a server of ours: always mutual TLS, always to the name in the server's certificate.

Rules:

1. Without certificate files only a loopback address is dialled: plaintext never leaves the machine.
2. The name expected in the server's certificate is given by the caller, whatever address is dialled; it is also what a
   proxy in between may route by.
3. Environment proxies are ignored: they would see who talks to whom, and none speaks our mutual TLS.
4. Keepalive pings hold idle streams open through firewalls and notice a vanished peer within about 80 seconds.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import grpc

from federation.errors import ConfigurationError
from federation.transport.credentials import channel_credentials

if TYPE_CHECKING:
    from federation.transport.credentials import TlsFiles

MAX_MESSAGE_BYTES = 8 << 20
"""Largest message either side accepts; payloads travel in chunks of at most 4 MiB."""

_KEEPALIVE_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000
_MIN_PING_INTERVAL_MS = 30_000
_MAX_RECONNECT_BACKOFF_MS = 10_000
_MAX_FRAME_BYTES = 4 << 20
"""A piece in one frame: by default it is cut into 256, each with its header and its place in the buffers."""

_COMMON_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # a session that says nothing for hours is normal here
    ("grpc.http2.max_frame_size", _MAX_FRAME_BYTES),
)
CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    *_COMMON_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_BACKOFF_MS),
    # Each channel its own connection: after a renewal the new channel must not be handed the old one's.
    ("grpc.use_local_subchannel_pool", 1),
    # A fixed receive window, as at the server: by default it grows with the line's speed, whether or not what comes is
    # stored as fast (100 MB in a collaborator whose disk or processor is busy, measured).
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_COMMON_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
    # A fixed receive window a stream. By default it grows with the line's speed, up to megabytes, for streams too that
    # nobody reads yet: 3 to 9 MB for each of 16 uploads, measured. While a message is read gRPC adds what is missing of
    # it, so a sender has a whole piece under way, however large; one that is not read, this much.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.so_reuseport", 0),  # a port in use must be an error, not a second server taking every other connection
)


def open_channel(address: str, *, server_name: str, tls: TlsFiles | None) -> grpc.aio.Channel:
    """Return a channel to `address`; it connects when it is first used, and again when it was cut.

    The caller closes it. A fault on the way shows as TransportError from the first call.

    Args:
        address: ``host:port``.
        server_name: DNS name the server's certificate must carry (`federation.names.director_server_name`,
            `aggregator_server_name`).
        tls: our certificate files; None for plaintext, to loopback addresses only.

    Raises:
        ConfigurationError: `address` is not ``host:port``; certificate files are not usable; plaintext was asked for
            towards another machine.
    """
    host, port = split_address(address)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if tls is None:
        require_loopback(host)
        return grpc.aio.insecure_channel(target, options=CLIENT_OPTIONS)
    options = (*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", server_name))
    return grpc.aio.secure_channel(target, channel_credentials(tls), options=options)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[ipv6]:port``.

    Raises:
        ConfigurationError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"address {address!r} is not valid: give host:port, such as director.example.org:7000")
    return host, int(port)


def require_loopback(host: str) -> None:
    """Check that `host` is this machine.

    Raises:
        ConfigurationError: it is not, or is a name other than localhost.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigurationError(
            f"plaintext is for loopback addresses only, got {host!r}: give certificate files (`federation pki issue`)"
        )
