"""Counts connections that never became a call: plaintext clients, missing, foreign and expired certificates.

gRPC ends such a connection inside its TLS handshake and tells Python nothing about it: no handler runs and no callback
reports the failure; its own log has a line. What Python does see is the *start* of each handshake, since the server's
certificate is asked for anew each time (`federation.transport.credentials.server_credentials`), and the first call of
each connection. A handshake that no first call follows within `PATIENCE_S` is therefore counted as refused.

So the count is exact in number but late by `PATIENCE_S`, cannot tell the reasons apart, and also counts a client that
connects and then says nothing: of ours, `federation doctor`, once each time, and a probe of the port by TCP alone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.runtime.clock import Cancellable, Clock

PATIENCE_S = 30.0
"""Longer than any handshake over a slow line; gRPC clients give up after 20 s."""
_REMEMBERED_CONNECTIONS = 4096
_MAX_WAITING = 10_000


class HandshakeLedger:
    """Matches handshakes with first calls; all methods run in the event loop.

    Args:
        clock: what `PATIENCE_S` is measured by.
        refused: called once for each handshake that came to nothing.
    """

    def __init__(self, clock: Clock, refused: Callable[[], None]) -> None:
        self._clock = clock
        self._refused = refused
        self._waiting: deque[Cancellable] = deque()
        self._known: OrderedDict[str, None] = OrderedDict()

    def begun(self) -> None:
        """Note that a handshake starts."""
        if len(self._waiting) >= _MAX_WAITING:  # a flood: count at once rather than remember without bound
            self._refused()
            return
        self._waiting.append(self._clock.timer(PATIENCE_S, self._expire))

    def called(self, connection: str) -> None:
        """Note a call over `connection` (gRPC's name of the peer: address and port)."""
        if connection in self._known:
            self._known.move_to_end(connection)
            return
        self._known[connection] = None
        if len(self._known) > _REMEMBERED_CONNECTIONS:
            self._known.popitem(last=False)
        if self._waiting:
            # Whose handshake it was does not matter for the number: the oldest that waits is as good as its own.
            self._waiting.popleft().cancel()

    def close(self) -> None:
        """Forget what waits: the server stops."""
        while self._waiting:
            self._waiting.popleft().cancel()

    def _expire(self) -> None:
        # Timers run in order of their start, all with the same delay: the one that fires is the oldest.
        if self._waiting:
            self._waiting.popleft()
        self._refused()
