"""Collaborators as supervised children: started, adopted after the envoy's own death, restarted, stopped.

Rules:

1. One collaborator per experiment. What a process finds in its exit folder decides (`endings`), not who started it.
2. An envoy that starts first looks whether the collaborator of its predecessor still runs, and adopts it.
3. A crash is mended by starting again after a growing delay, a bounded number of times; a full disk is waited for.
4. Stopping goes by the local socket, which carries the reason, and by signal if the line is not there.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envoy import endings
from federation.errors import FederationError, StorageError, TransportError
from federation.runtime import children
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause
from federation.runtime.records import is_for_want_of_room, read_exit_record, write_atomically
from federation.telemetry.logs import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.stdlib import BoundLogger

    from federation.collaborator.config import CollaboratorConfig
    from federation.collaborator.local_socket import LineStream
    from federation.names import ExperimentId
    from federation.runtime.clock import Clock
    from federation.telemetry.metrics import Metrics

_log = get_logger(__name__)
_KIND = "collaborator"
_STOP_MARGIN_S = 10.0
"""Beyond its own drain time a collaborator gets this long to end its trainer and write its record, seconds."""
_PASSED_ON = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "HOME")
CONFIG_FILE = "collaborator.json"


@dataclass(slots=True, kw_only=True)
class Collaborator:
    """One experiment's collaborator, whatever process it is at the moment.

    Attributes:
        experiment: id.
        folder: the experiment's folder at this envoy.
        config: what the process is told.
        max_restarts: crashes in a row that are mended.
        clock: for the delay before a restart.
        metrics: where restarts are counted.
    """

    experiment: ExperimentId
    folder: Path
    config: CollaboratorConfig
    max_restarts: int
    clock: Clock
    metrics: Metrics
    metrics_address: str = ""
    _child: children.Child | None = None
    _stream: LineStream | None = None
    _asked: bool = False
    _crashes: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def _log(self) -> BoundLogger:
        return _log.bind(experiment=self.experiment)

    async def run(self) -> endings.Over | None:
        """Keep it running until it is over; None if it stopped because we asked.

        Cancelling leaves the process running, to be adopted by the next envoy.
        """
        backoff = Backoff(first_s=0.5, most_s=60.0)
        try:
            self._child = children.adopt(self.config.folder)
            if self._child is not None:
                self._log.info("adopted the collaborator of %s, pid %s", self.experiment, self._child.identity.pid)
            else:
                last_word = self._last_word()
                if last_word is not None:
                    return last_word
            while not self._asked:
                ending = await self._run_once()
                if isinstance(ending, endings.Over):
                    return ending
                if isinstance(ending, endings.AtRest):
                    break
                self.metrics.child_restarts_total.labels(_KIND).inc()
                await pause(self.clock, backoff.next_s(), self._wake.wait())
            return None
        finally:
            if self._child is not None and self._child.is_running:
                self._child.release()

    def connected(self, stream: LineStream, metrics_address: str) -> None:
        """Note the line that the collaborator dialled."""
        self._stream = stream
        self.metrics_address = metrics_address

    async def certificate_renewed(self) -> None:
        """Tell it that the certificate files may be newer than those it uses; it looks, so repeating is harmless."""
        if self._stream is not None:
            try:
                await self._stream.send({"type": "certificate"})
            except TransportError:
                self._log.info("the collaborator of %s will be told of the renewed certificate later", self.experiment)

    def disconnected(self, stream: LineStream) -> None:
        """Note that a line is gone; a newer one stays."""
        if self._stream is stream:
            self._stream = None
            self.metrics_address = ""

    def progressed(self) -> None:
        """Note that a round was worked on: crashes before it are forgiven."""
        self._crashes = 0

    async def move(self, address: str, server_name: str) -> None:
        """Tell it that its aggregator is there, and where, and whoever is started later."""
        if (address, server_name) != (self.config.aggregator_address, self.config.aggregator_server_name):
            self.config = self.config.model_copy(
                update={"aggregator_address": address, "aggregator_server_name": server_name}
            )
            try:
                self._write_config()
            except StorageError as error:  # it is written again before anybody reads it
                self._log.warning("where the aggregator of %s is could not be written: %s", self.experiment, error)
        if self._stream is not None:
            try:
                await self._stream.send({"type": "aggregator", "address": address, "server_name": server_name})
            except TransportError as error:
                self._log.info("the collaborator of %s will read its new aggregator later: %s", self.experiment, error)

    async def stop(self, reason: str, *, drain: bool) -> None:
        """Ask it to end and return once it has; after its time it is killed.

        Args:
            reason: for its log.
            drain: let a task in progress end; otherwise end at once.
        """
        self._asked = True
        self._wake.set()
        child = self._child
        if child is None or not child.is_running:
            return
        grace_s = _STOP_MARGIN_S + (self.config.drain_s if drain else 0.0)
        try:
            if self._stream is None:
                raise TransportError("no line")
            await self._stream.send({"type": "stop", "reason": reason, "drain": drain})
        except TransportError:
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), grace_s)
        except TimeoutError:
            self._log.warning("the collaborator of %s did not end in %s s and is killed", self.experiment, grace_s)
            await child.stop(0.5)

    def kill(self) -> None:
        """End it at once; its trainer dies with it."""
        self._asked = True
        self._wake.set()
        if self._child is not None:
            self._child.kill()

    async def _run_once(self) -> endings.Ending:
        if self._child is None or not self._child.is_running:
            try:
                self._child = await self._spawn()
            except StorageError as error:
                if not is_for_want_of_room(error, self.folder):
                    raise
                self._log.warning("the collaborator of %s has to wait for room: %s", self.experiment, error)
                return endings.Again()
        status = await self._child.wait()
        ending = endings.judge(
            status.record,
            str(status),
            asked=self._asked,
            crashes=self._crashes,
            max_restarts=self.max_restarts,
            is_disk_full=status.is_disk_full,
        )
        self._crashes += not status.is_disk_full
        log = self._log.warning if isinstance(ending, endings.Again) else self._log.info
        log("the collaborator of %s: %s", self.experiment, status)
        return ending

    async def _spawn(self) -> children.Child:
        self._write_config()
        path = self.folder / CONFIG_FILE
        return await children.spawn(
            children.ChildSpec(
                name=f"{_KIND} of {self.experiment}",
                argv=[sys.executable, "-P", "-m", "federation.collaborator", "--config", str(path)],
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                cwd=self.folder,
                log=self.folder / "collaborator.log",
                folder=self.config.folder,
            )
        )

    def _write_config(self) -> None:
        write_atomically(self.folder / CONFIG_FILE, self.config.model_dump_json(indent=1).encode())

    def _last_word(self) -> endings.Over | None:
        """What a process that ended while no envoy watched has left."""
        record = read_exit_record(self.config.folder)
        if record is None:
            return None
        ending = endings.judge(record, record.outcome, asked=False, crashes=0, max_restarts=1)
        return ending if isinstance(ending, endings.Over) else None


OnEnd = Callable[["ExperimentId", endings.Over], Awaitable[None]]


class Collaborators:
    """All collaborators of this site."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._all: dict[str, Collaborator] = {}

    def get(self, experiment: str) -> Collaborator | None:
        """Return an experiment's collaborator, or None."""
        return self._all.get(experiment)

    def all(self) -> list[Collaborator]:
        """Return all, by experiment."""
        return [self._all[name] for name in sorted(self._all)]

    def add(self, collaborator: Collaborator) -> None:
        """Take one in before it runs, so that its line is known when it dials.

        Raises:
            RuntimeError: the experiment has one already.
        """
        if collaborator.experiment in self._all:
            raise RuntimeError(f"experiment {collaborator.experiment} has a collaborator already")
        self._all[collaborator.experiment] = collaborator
        self._count()

    async def run(self, collaborator: Collaborator, on_end: OnEnd) -> None:
        """Keep one that was added running until it is over, then call `on_end`."""
        try:
            over = await collaborator.run()
        except FederationError as error:
            name = collaborator.experiment
            _log.error("the collaborator of %s cannot be started: %s", name, error, experiment=name)
            over = endings.Over(outcome=endings.FAILED, error_class=type(error).__name__, reason=str(error))
        finally:
            del self._all[collaborator.experiment]
            self._count()
        if over is not None:
            await on_end(collaborator.experiment, over)

    async def certificate_renewed(self) -> None:
        """Tell all that the certificate was renewed."""
        await asyncio.gather(*(each.certificate_renewed() for each in self.all()))

    async def stop_all(self, reason: str) -> None:
        """Ask all to end in good order and wait until they have."""
        await asyncio.gather(*(each.stop(reason, drain=True) for each in self.all()))

    def kill_all(self) -> None:
        """End all at once."""
        for each in self.all():
            each.kill()

    def _count(self) -> None:
        self._metrics.children.labels(_KIND).set(len(self._all))
