"""Tell whoever started a daemon that it is ready, in systemd's datagram protocol (sd_notify).

A unit of ``Type=notify`` needs nothing else, and a parent of ours waits on the same socket instead of probing ports.
Lines beginning with ``X_`` carry what only we ask for, such as the address a daemon really listens on. A daemon goes on
when nobody listens any more: it may have been told to outlive who started it, and it says that it is ready after every
reconnect.
"""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger(__name__)


def notify_ready(**facts: str) -> None:
    """Send ``READY=1`` and the facts (as ``X_NAME=value``) to ``$NOTIFY_SOCKET``; do nothing where nobody listens."""
    _send("\n".join(["READY=1", *(f"X_{name.upper()}={value}" for name, value in facts.items())]))


def notify_stopping() -> None:
    """Send ``STOPPING=1``; do nothing where nobody listens."""
    _send("STOPPING=1")


def _send(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # A leading @ names a socket of Linux's abstract namespace.
    place = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        # Whoever has stopped reading may not hold us up either.
        channel.setblocking(False)
        try:
            channel.sendto(text.encode(), place)
        except OSError as error:
            _log.info("nobody was told %s: %s", text.partition("\n")[0], error)
