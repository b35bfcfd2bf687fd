"""Who holds the lease of a database: this process, written so that a later one can tell whether it still lives.

A director that was killed leaves its lease behind. One that starts on the same machine, in the same container, can know
that the holder is dead and need not wait for the lease to run out; one elsewhere cannot, and waits.
"""

from __future__ import annotations

import json
import os
import socket

from federation.runtime.children import ProcessIdentity


def describe() -> str:
    """Return this process as a holder: host, process namespace, process."""
    identity = ProcessIdentity.of(os.getpid())
    return json.dumps({"host": socket.gethostname(), "space": _space(), "process": json.loads(identity.to_json())})


def is_dead(holder: str) -> bool:
    """Tell whether that holder certainly lives no more; False if this machine cannot know."""
    try:
        fields = json.loads(holder)
        if (fields["host"], fields["space"]) != (socket.gethostname(), _space()):
            return False
        return not ProcessIdentity.from_json(json.dumps(fields["process"])).is_alive()
    except (ValueError, KeyError, TypeError):
        return False


def _space() -> str:
    """The process namespace: the same pid in another container is another process."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
