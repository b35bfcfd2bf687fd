"""What a handler is told about its call, and how an open call is ended from outside.

Rules:

1. An open stream ends the moment its certificate expires (timer) or is revoked (event): `OpenCalls` ends it.
2. A service may end a call of its own with any error, for example when a newer session of the same identity supersedes
   an older one.
3. Ending never cancels gRPC's own task, which would leave the client waiting for ever: the handler's guard
   (`federation.transport.handlers`) sees `Call.ended` and aborts from inside.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

    from federation.errors import FederationError
    from federation.runtime.clock import Cancellable
    from federation.transport.authority import Authority, Peer

_LONGEST_TIMER_S = 3600.0
"""Certificates end by the wall clock, which may be set; so a long wait is looked at again each hour."""


@dataclass(eq=False, slots=True, kw_only=True)
class Call:
    """One call being served.

    Attributes:
        method: full method name.
        peer: who calls, from the certificate.
        raw: gRPC's own context, for what this class does not offer.
        is_session: a stream that ends only with its peer, which a stopping server therefore ends at once: every
            bidirectional one, and those for which the implementation says so.
        ended: result is the error to end the call with; set by `end`.
        is_replying: gRPC has a reply of this call in hand, and no status can be sent before it is done with it.
    """

    method: str
    peer: Peer
    raw: grpc.aio.ServicerContext[Any, Any]
    is_session: bool = False
    ended: asyncio.Future[FederationError] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    is_replying: bool = False

    def end(self, error: FederationError) -> None:
        """End the call from outside its handler; the client gets `error`. The first reason given stands.

        The handler's implementation is cancelled at the await it is in. Only streams can be ended so: a call with one
        request and one reply has its answer, or its deadline, soon enough.
        """
        if not self.ended.done():
            self.ended.set_result(error)


class OpenCalls:
    """The streams a server holds open, each ended when its certificate no longer counts.

    Args:
        authority: what decides whether a peer may go on.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._timers: dict[Call, Cancellable | None] = {}
        self._unsubscribe = authority.revoked.subscribe(self.recheck)

    def __len__(self) -> int:
        return len(self._timers)

    def add(self, call: Call) -> None:
        """Watch `call` until `discard`."""
        self._timers[call] = None
        self._arm(call)

    def discard(self, call: Call) -> None:
        """Forget a call that is over."""
        timer = self._timers.pop(call, None)
        if timer is not None:
            timer.cancel()

    def recheck(self) -> None:
        """End every stream whose peer may no longer go on."""
        for call in list(self._timers):
            self._check(call)

    def end(self, error: FederationError, *, sessions_only: bool = False) -> None:
        """End all open streams, or sessions alone, with `error`."""
        for call in list(self._timers):
            if call.is_session or not sessions_only:
                call.end(error)

    def close(self) -> None:
        """Stop following the revocation list."""
        self._unsubscribe()

    def _arm(self, call: Call) -> None:
        if math.isinf(call.peer.expires_at):
            return
        clock = self._authority.clock
        delay_s = min(max(call.peer.expires_at - clock.now(), 0.0), _LONGEST_TIMER_S)
        self._timers[call] = clock.timer(delay_s, lambda: self._expire(call))

    def _expire(self, call: Call) -> None:
        if call in self._timers and self._check(call):
            self._arm(call)

    def _check(self, call: Call) -> bool:
        error = self._authority.recheck(call.peer)
        if error is None:
            return True
        call.end(error)
        return False
