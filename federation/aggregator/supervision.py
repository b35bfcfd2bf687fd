"""The session with the director: reports up until they are acknowledged, roster and orders down.

Rules:

1. Hello first; the director's welcome says which journal sequence it holds, and every later report is sent again, read
   back from the journal. A report is done when it is acknowledged, never when it is sent.
2. A cut session is redialled with backoff, which begins anew once a session has stood for some time, for as long as the
   lease lasts: after `orphan_s` alone the aggregator ends itself and its journal stays.
3. Events and progress are for people: those that happen while there is no session are dropped, the newest status is
   sent again.
4. A renewed certificate means a new session over a new channel, at once: the director ends the old one when the
   certificate it began with expires. It is also a sign that the director is there, and so ends the delay of rule 2.
5. The experiment's end is a report too. The director answers it by ending the session well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from federation.aggregator.sessions import Bounds
from federation.errors import ConflictError, FederationError, IdentityError, MalformedMessageError, TransportError
from federation.names import SiteName, check_name
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause
from federation.telemetry.logs import get_logger
from federation.v1 import director_pb2
from federation.wire.reports import report_to_proto
from federation.wire.versions import check_chosen, range_to_proto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from federation.names import Epoch, ExperimentId
    from federation.rounds.events import Finish
    from federation.rounds.history import RoundRecord
    from federation.runtime.clock import Clock
    from federation.runtime.orphans import Lease
    from federation.transport.methods import BidiCall, Stub

_QUEUED_EVENTS = 1000


class Supervision(Protocol):
    """Whoever supervises an aggregator, as the rest of it sees him."""

    def event(self, event: director_pb2.Event) -> None:
        """Tell people what happens."""

    def status(self, *, is_paused: bool, reason: str, sites: list[SiteName]) -> None:
        """Say how the experiment goes."""

    def committed(self, record: RoundRecord) -> None:
        """Report a committed round; its sequence is set."""

    async def ended(self, finish: Finish, sequence: int) -> None:
        """Report the end, and return once that is acknowledged."""


class NoSupervision:
    """For an aggregator with a fixed roster and no director: what it reports stays in its journal."""

    def event(self, event: director_pb2.Event) -> None:
        """Drop it."""

    def status(self, *, is_paused: bool, reason: str, sites: list[SiteName]) -> None:
        """Drop it."""

    def committed(self, record: RoundRecord) -> None:
        """Drop it."""

    async def ended(self, finish: Finish, sequence: int) -> None:
        """Return at once."""


class Orders(Protocol):
    """What a director may tell an aggregator."""

    def roster(self, roster: Mapping[SiteName, Bounds]) -> None:
        """Take these sites, and no others."""

    def revoked(self, serials: frozenset[int]) -> None:
        """Take these certificates as revoked, and no others."""

    def stop(self, outcome: str, reason: str) -> None:
        """End now."""


class DirectorSupervision:
    """The session with a director; `run` keeps it up.

    Args:
        connect: returns a stub of the Director service; called for each dial, so that renewed certificates are used.
        experiment: its id.
        epoch: of this process.
        reports: reads committed rounds after a journal sequence; blocks.
        last_sequence: present end of the journal.
        orders: who obeys.
        lease: permission to go on alone.
        clock: times the backoff.
    """

    def __init__(
        self,
        connect: Callable[[], Stub],
        *,
        experiment: ExperimentId,
        epoch: Epoch,
        reports: Callable[[int], Iterator[RoundRecord]],
        last_sequence: Callable[[], int],
        orders: Orders,
        lease: Lease,
        clock: Clock,
    ) -> None:
        self._connect = connect
        self._hello = director_pb2.AggregatorHello(experiment=experiment, epoch=epoch)
        self._reports = reports
        self._last_sequence = last_sequence
        self._orders = orders
        self._lease = lease
        self._clock = clock
        self._log = get_logger(__name__).bind(experiment=experiment)
        self._outbox: asyncio.Queue[director_pb2.SuperviseRequest] | None = None
        self._status: director_pb2.AggregatorStatus | None = None
        self._end: director_pb2.ExperimentEnd | None = None
        self._acknowledged = asyncio.Event()
        self._sent = 0
        self._call: BidiCall | None = None
        self._is_redialling = False
        self._renewed = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        """Whether there is a session."""
        return self._outbox is not None

    def event(self, event: director_pb2.Event) -> None:
        """Send an event if there is a session."""
        if self._outbox is not None and self._outbox.qsize() < _QUEUED_EVENTS:
            event.at = self._clock.now()
            event.experiment = self._hello.experiment
            self._outbox.put_nowait(director_pb2.SuperviseRequest(event=event))

    def status(self, *, is_paused: bool, reason: str, sites: list[SiteName]) -> None:
        """Send the status now, and again after every reconnection."""
        state = "paused" if is_paused else "running"
        self._status = director_pb2.AggregatorStatus(state=state, reason=reason, sites=sites)
        self._put(director_pb2.SuperviseRequest(status=self._status))

    def committed(self, record: RoundRecord) -> None:
        """Send a report; without a session it is read from the journal later."""
        if self._outbox is not None and record.sequence > self._sent:
            self._sent = record.sequence
            self._put(director_pb2.SuperviseRequest(report=report_to_proto(record)))

    async def ended(self, finish: Finish, sequence: int) -> None:
        """Send the end after all reports, and return once the director has it all."""
        self._end = director_pb2.ExperimentEnd(
            outcome=finish.outcome, reason=finish.reason, degraded=finish.is_degraded, sequence=sequence
        )
        self._put(director_pb2.SuperviseRequest(end=self._end))
        await self._acknowledged.wait()

    def redial(self) -> None:
        """Go on in a new session with the certificate files as they are now; reports are read from the journal.

        Without a session one is dialled at once: who renewed the certificate is there.
        """
        self._renewed.set()
        # Not once the end was said: its acknowledgement ends this session by itself.
        if self._call is not None and self._end is None:
            self._is_redialling = True
            self._call.cancel()

    async def run(self, address: str, metrics_address: str) -> None:
        """Keep the session up; returns once the end is acknowledged.

        Args:
            address: ``host:port`` that collaborators dial.
            metrics_address: ``host:port`` of ``/metrics``.

        Raises:
            IdentityError: the director does not take this aggregator, and would not the next time either.
        """
        self._hello.address, self._hello.metrics_address = address, metrics_address
        backoff = Backoff(first_s=0.1, most_s=10.0)
        while not self._acknowledged.is_set():
            try:
                await self._attend(backoff)
                if self._end is not None:
                    # Rule 5: a session that ends well after the end is the director's acknowledgement.
                    self._acknowledged.set()
            except (IdentityError, ConflictError):
                raise
            except FederationError as error:
                if self._is_redialling:
                    continue
                self._log.warning("no session with the director", reason=str(error), failures=backoff.failures)
            finally:
                self._outbox = self._call = None
                self._lease.parent_lost()
            if not self._acknowledged.is_set():
                if await pause(self._clock, backoff.next_s(), self._renewed.wait()):
                    backoff.reset()

    async def _attend(self, backoff: Backoff) -> None:
        """Hold one session to its end."""
        self._is_redialling = False
        self._renewed.clear()
        self._call = call = self._connect().bidi("Supervise")
        try:
            hello = director_pb2.AggregatorHello()
            hello.CopyFrom(self._hello)
            hello.protocol.CopyFrom(range_to_proto())
            hello.last_sequence = self._last_sequence()
            await call.write(director_pb2.SuperviseRequest(hello=hello))
            first = await call.read()
            if first is not None and first.HasField("stop"):
                self._obey(first)
                return
            if first is None or not first.HasField("welcome"):
                raise TransportError("the director ended the session before its welcome")
            began = self._clock.monotonic()
            await self._begin(first.welcome)
            writer = asyncio.create_task(self._write(call), name="aggregator/supervision writer")
            try:
                while (reply := await call.read()) is not None:
                    self._obey(reply)
            finally:
                writer.cancel()
                await asyncio.wait({writer})
                backoff.stood(self._clock.monotonic() - began)
        finally:
            call.cancel()

    async def _begin(self, welcome: director_pb2.AggregatorWelcome) -> None:
        """Queue what the director does not have, oldest first."""
        check_chosen(welcome.protocol)
        self._orders.revoked(_serials(welcome.revoked))
        missing: list[RoundRecord] = []
        read = welcome.last_sequence
        while read < (last := self._last_sequence()):
            missing += await asyncio.to_thread(lambda after: list(self._reports(after)), read)
            read = max(last, missing[-1].sequence if missing else 0)
        # Nothing is awaited from here on, so what is committed next comes after what is queued.
        self._outbox = asyncio.Queue()
        self._lease.parent_found()
        for record in missing:
            self._put(director_pb2.SuperviseRequest(report=report_to_proto(record)))
        self._sent = read
        if self._status is not None:
            self._put(director_pb2.SuperviseRequest(status=self._status))
        if self._end is not None:
            self._put(director_pb2.SuperviseRequest(end=self._end))
        self._log.info("session with the director", reports=len(missing))

    async def _write(self, call: BidiCall) -> None:
        assert self._outbox is not None  # noqa: S101 - set by _begin, our own call order
        outbox = self._outbox
        while True:
            if not await call.try_write(await outbox.get()):
                return  # the reader learns why

    def _obey(self, reply: director_pb2.SuperviseReply) -> None:
        kind = reply.WhichOneof("message")
        if kind == "roster":
            self._orders.roster(read_roster(reply.roster))
        elif kind == "acknowledge":
            if self._end is not None and reply.acknowledge.sequence >= self._end.sequence:
                self._acknowledged.set()
        elif kind == "revoked":
            self._orders.revoked(_serials(reply.revoked.serials))
        elif kind == "stop":
            self._orders.stop(reply.stop.outcome, reply.stop.reason)

    def _put(self, request: director_pb2.SuperviseRequest) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(request)


def read_roster(roster: director_pb2.Roster) -> dict[SiteName, Bounds]:
    """Return a roster as bounds by site."""
    return {
        SiteName(check_name(row.site, "site name")): Bounds(
            train_examples=row.train_examples, validation_examples=row.validation_examples, releases=row.releases
        )
        for row in roster.sites
    }


def _serials(texts: Iterable[str]) -> frozenset[int]:
    try:
        return frozenset(int(text, 16) for text in texts)
    except ValueError as error:
        raise MalformedMessageError(f"a revoked serial number is not hexadecimal: {error}") from error
