"""Tell whoever started a daemon that it is ready, in systemd's datagram protocol (sd_notify).

A unit of ``Type=notify`` needs nothing else, and a parent of ours waits on the same socket instead of probing ports.
Lines beginning with ``X_`` carry what only we ask for, such as the address a daemon really listens on.
"""

from __future__ import annotations

import os
import socket


def notify_ready(**facts: str) -> None:
    """Send ``READY=1`` and the facts (as ``X_NAME=value``) to ``$NOTIFY_SOCKET``; do nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    lines = ["READY=1", *(f"X_{name.upper()}={value}" for name, value in facts.items())]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        # A leading @ names a socket of Linux's abstract namespace.
        channel.sendto("\n".join(lines).encode(), "\0" + address[1:] if address.startswith("@") else address)


def notify_stopping() -> None:
    """Send ``STOPPING=1``; do nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.sendto(b"STOPPING=1", "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            return  # who started us has gone; nobody is left to tell
