"""The collaborator's line to its envoy: who I am, how it goes, and what the envoy wants.

Rules:

1. The collaborator dials; the first line is ``hello``, later ones are ``status``. The latest status is sent again
   after a reconnect, so an envoy that was restarted knows how things stand. Of rounds that follow each other within
   `REST_S` it is told the first at once and the latest afterwards: a line each would cost more than the rounds.
2. ``stop`` asks for an orderly end; ``aggregator`` says that the aggregator is there, and its address; ``certificate``
   says that the certificate files may be newer than those in use.
3. While the envoy is away the work goes on, until the lease expires; then the collaborator ends itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from federation.collaborator import local_socket
from federation.errors import MalformedMessageError, TransportError
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation.runtime.clock import Cancellable, Clock
    from federation.runtime.orphans import Lease

_log = logging.getLogger(__name__)
MAX_DETAIL_CHARACTERS = 4096
REST_S = 0.5
"""Seconds for which another round is not told: more often nobody reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a participation goes.

    Attributes:
        state: ``running``, ``finished`` or ``failed``.
        round: newest round the site worked on; 0 before the first.
        error_class: class of what went wrong; empty otherwise.
        detail: text the site's policy releases; empty otherwise.
    """

    state: str
    round: int = 0
    error_class: str = ""
    detail: str = ""

    def to_message(self) -> dict[str, Any]:
        """The line that says so."""
        return {
            "type": "status",
            "state": self.state,
            "round": self.round,
            "error_class": self.error_class,
            "detail": self.detail[:MAX_DETAIL_CHARACTERS],
        }


@dataclass(slots=True, kw_only=True)
class EnvoyLine:
    """The connection to the envoy, kept up for the life of the process.

    Attributes:
        path: the envoy's socket.
        experiment: id, for the hello.
        metrics_address: ``host:port`` of this process's ``/metrics``.
        lease: how long this process may be alone.
        clock: for the backoff.
        on_stop: called with the reason, and whether a task in progress may end first, when the envoy asks for an end.
        on_aggregator: called with address and server name when the envoy hears that the aggregator is there.
        on_certificate: called when the certificate files may have changed.
    """

    path: Path
    experiment: str
    metrics_address: str
    lease: Lease
    clock: Clock
    on_stop: Callable[[str, bool], None]
    on_aggregator: Callable[[str, str], None]
    on_certificate: Callable[[], None]
    _status: Status = field(default_factory=lambda: Status(state="running"))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: asyncio.Event = field(default_factory=asyncio.Event)
    _told_round: int = 0
    _resting: Cancellable | None = None

    def report(self, status: Status) -> None:
        """Tell the envoy how it goes: now, or as soon as it is there again; only the latest is told."""
        self._status = status
        self._sent.clear()
        if status.state != "running" or self._resting is None:
            self._changed.set()

    async def told(self) -> None:
        """Return once the envoy was sent the latest status."""
        await self._sent.wait()

    async def run(self) -> None:
        """Keep the line up; never returns."""
        backoff = Backoff(most_s=5.0)
        while True:
            try:
                stream = await local_socket.connect(self.path)
            except TransportError as error:
                self.lease.parent_lost()
                if backoff.failures == 0:
                    _log.warning("%s; going on alone for now", error)
                await pause(self.clock, backoff.next_s())
                continue
            backoff.reset()
            self.lease.parent_found()
            try:
                await self._converse(stream)
            except (TransportError, MalformedMessageError) as error:
                _log.warning("line to the envoy was cut: %s", error)
            finally:
                await stream.aclose()
            self.lease.parent_lost()
            await pause(self.clock, backoff.next_s())

    async def _converse(self, stream: local_socket.LineStream) -> None:
        await stream.send(
            {
                "type": "hello",
                "experiment": self.experiment,
                "pid": os.getpid(),
                "metrics_address": self.metrics_address,
            }
        )
        self._changed.set()
        sender = asyncio.create_task(self._send_changes(stream), name="envoy-line-sender")
        try:
            while (message := await stream.receive()) is not None:
                self._obey(message)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send_changes(self, stream: local_socket.LineStream) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            status = self._status
            try:
                await stream.send(status.to_message())
            except TransportError:
                return  # the receiving side notices the same end and dials again
            if status.round != self._told_round and self._resting is None:
                self._resting = self.clock.timer(REST_S, self._end_rest)
            self._told_round = status.round
            if status is self._status:
                self._sent.set()

    def _end_rest(self) -> None:
        self._resting = None
        if not self._sent.is_set():
            self._changed.set()

    def _obey(self, message: local_socket.Message) -> None:
        kind = message["type"]
        if kind == "stop":
            self.on_stop(str(message.get("reason", ""))[:MAX_DETAIL_CHARACTERS], message.get("drain") is not False)
        elif kind == "aggregator":
            self.on_aggregator(str(message.get("address", "")), str(message.get("server_name", "")))
        elif kind == "certificate":
            self.on_certificate()
        else:
            raise MalformedMessageError(f"the envoy sent a line of unknown type {kind[:80]!r}")
