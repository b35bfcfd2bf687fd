"""Aggregators' sessions: their reports are stored and acknowledged, their state becomes the experiment's.

Rules, in order:

1. An aggregator speaks for the experiment in its certificate, under the epoch it was granted. One with an older
   epoch, or of an experiment that is over, is told to stop, at its hello and at any later message.
2. A report is stored under its journal sequence, then acknowledged: it may be sent again without harm. Reports and
   progress in quick succession are stored together (`director.bursts`), always before what follows them.
3. The end of an experiment is stored, acknowledged, and then the stream ends in good order.
4. The roster is every site that accepted, with the examples its envoy declared and how often it was released from
   quarantine; it is sent again whenever it changes, so a release reaches every later aggregator too.
5. The first reply is the welcome, or an order to stop: what changes before it is in it, or follows.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from director import lifecycle
from director.bursts import ReportBurst
from director.sessions import Outbox, converse, first
from director.store import events, experiments, rounds, sites
from federation.errors import FederationError, IdentityError, MalformedMessageError, PeerError, StaleRoundError
from federation.names import Epoch, ExperimentId, ExperimentState
from federation.telemetry.http import DiscoveryTarget
from federation.telemetry.logs import get_logger
from federation.v1 import director_pb2 as pb
from federation.wire.reports import report_from_proto
from federation.wire.versions import negotiate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from sqlalchemy.orm import Session

    from director.bursts import Told
    from director.store.database import Database
    from director.store.records import ExperimentRecord
    from federation.runtime.clock import Clock
    from federation.transport.calls import Call

_STATES = {"running": ExperimentState.RUNNING, "paused": ExperimentState.PAUSED}
_OUTCOMES = {
    "completed": ExperimentState.COMPLETED,
    "failed": ExperimentState.FAILED,
    "cancelled": ExperimentState.CANCELLED,
}
_EVENT_KINDS = frozenset({"site", "phase", "update", "audit"})
_MAX_TEXT = 2000
_MAX_ADDRESS = 300
CANCELLED, SUPERSEDED = "cancelled", "superseded"

_log = get_logger(__name__)


class AggregatorListener(Protocol):
    """Who acts on what aggregators say; called on the event loop, returns at once."""

    def aggregator_ready(self, experiment: ExperimentId) -> None:
        """An aggregator said where it is reached: sites may be asked."""

    def state_changed(self) -> None:
        """An experiment paused or runs again."""

    def ended(self, experiment: ExperimentId) -> None:
        """The experiment is over, as its aggregator says."""


@dataclass(slots=True, kw_only=True)
class _Session:
    experiment: ExperimentId
    epoch: Epoch
    actor: str
    metrics_address: str
    burst: ReportBurst
    is_welcome: bool = False
    roster: pb.Roster | None = None
    outbox: Outbox[pb.SuperviseReply] = field(default_factory=Outbox)


class Supervision:
    """The aggregators' half of the director.

    Args:
        database: where reports are kept.
        clock: for times.
        listener: told of changes.
        revoked: serial numbers of revoked certificates, in hex, as of now.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        listener: AggregatorListener,
        revoked: Callable[[], Iterable[str]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._listener = listener
        self._revoked = revoked
        self._sessions: dict[ExperimentId, _Session] = {}

    async def serve(self, requests: AsyncIterator[pb.SuperviseRequest], call: Call) -> AsyncIterator[pb.SuperviseReply]:
        """Hold one aggregator's session.

        Raises:
            IdentityError: it speaks for another experiment than its certificate's.
            PeerError: it broke another rule, or none of its protocol versions is spoken here.
        """
        hello = (await first(requests, "hello")).hello
        if hello.experiment != call.peer.identity.name:
            raise IdentityError(f"{call.peer.identity} cannot speak for experiment {hello.experiment[:80]!r}")
        version = negotiate(hello.protocol)
        found = await self._database.relaxed(experiments.get, hello.experiment)
        stop = _stop_order(found, hello.epoch)
        if stop is not None:
            _log.warning("aggregator told to stop", experiment=found.id, epoch=hello.epoch, reason=stop.reason)
            yield pb.SuperviseReply(stop=stop)
            return
        session = self._admit(hello, found, call)
        try:
            await self._database.transact(
                experiments.set_address, found.id, hello.address[:_MAX_ADDRESS], session.metrics_address
            )
            last = await self._database.relaxed(rounds.last_sequence, found.id)
            welcome = pb.AggregatorWelcome(protocol=version, last_sequence=last, revoked=list(self._revoked()))
            session.outbox.put(pb.SuperviseReply(welcome=welcome))
            session.is_welcome = True
            await self.push_roster(found.id)
            self._listener.aggregator_ready(found.id)
            name = f"supervise {found.id}"
            talk = converse(requests, lambda request: self._handle(session, request), session.outbox, name=name)
            storing = asyncio.create_task(self._store_bursts(session), name=f"reports of {found.id}")
            try:
                async with aclosing(talk) as replies:
                    async for reply in replies:
                        yield reply
            finally:
                await _end_bursts(session, storing)
        finally:
            if self._sessions.get(session.experiment) is session:
                del self._sessions[session.experiment]

    async def push_roster(self, experiment: ExperimentId) -> None:
        """Send the roster, if it changed and the experiment's aggregator is connected."""
        parts = await self._database.relaxed(sites.participations, experiment)
        session = self._sessions.get(experiment)
        if session is None or not session.is_welcome:
            return  # the roster follows its welcome
        roster = pb.Roster(
            sites=[
                pb.RosterSite(
                    site=part.site,
                    train_examples=part.train_examples,
                    validation_examples=part.validation_examples,
                    releases=part.releases,
                )
                for part in parts
                if part.answer == sites.ACCEPTED
            ]
        )
        if session.roster != roster:
            session.roster = roster
            session.outbox.put(pb.SuperviseReply(roster=roster))

    def push_revoked(self) -> None:
        """Tell every aggregator which certificates are revoked by now."""
        reply = pb.SuperviseReply(revoked=pb.RevokedSerials(serials=list(self._revoked())))
        for session in self._sessions.values():
            if session.is_welcome:
                session.outbox.put(reply)

    def stop(self, experiment: ExperimentId, outcome: str, reason: str) -> None:
        """Tell the experiment's aggregator, if it is connected, to end now."""
        session = self._sessions.get(experiment)
        if session is not None:
            session.outbox.put(pb.SuperviseReply(stop=pb.StopOrder(outcome=outcome, reason=reason)))

    def metrics_targets(self) -> list[DiscoveryTarget]:
        """Return where Prometheus finds the aggregators that are connected."""
        return [
            DiscoveryTarget(targets=(session.metrics_address,), labels={"experiment": session.experiment})
            for session in self._sessions.values()
            if session.metrics_address
        ]

    def close(self) -> None:
        """End every session; aggregators redial."""
        for session in self._sessions.values():
            session.outbox.close()

    def _admit(self, hello: pb.AggregatorHello, found: ExperimentRecord, call: Call) -> _Session:
        session = _Session(
            experiment=found.id,
            epoch=Epoch(hello.epoch),
            actor=call.peer.identity.spiffe,
            metrics_address=hello.metrics_address[:_MAX_ADDRESS],
            burst=ReportBurst(lambda reports: self._store(session, reports), self._clock),
        )
        older = self._sessions.get(found.id)
        self._sessions[found.id] = session
        if older is not None:
            # Of the same process, redialled before we noticed the cut, or of an epoch that is over: both must let go.
            if older.epoch < session.epoch:
                older.outbox.put(pb.SuperviseReply(stop=pb.StopOrder(outcome=SUPERSEDED, reason="a newer epoch runs")))
            older.outbox.close()
        _log.info("aggregator reports", experiment=found.id, epoch=hello.epoch, address=hello.address[:_MAX_ADDRESS])
        return session

    async def _handle(self, session: _Session, request: pb.SuperviseRequest) -> None:
        kind = request.WhichOneof("message")
        try:
            if kind == "report":
                report_from_proto(request.report)  # refuses what cannot mean anything
                await session.burst.add(request.report)
                return
            if kind == "event":
                event = self._kept(session, request.event)
                await session.burst.add(event)
                if event.kind not in events.PROGRESS_KINDS:
                    await session.burst.flush()
                return
            await session.burst.flush()
            if kind == "status":
                await self._status(session, request.status)
            elif kind == "end":
                await self._end(session, request.end)
            else:
                raise MalformedMessageError(f"after hello an aggregator sends reports, not {kind}")
        except StaleRoundError as error:
            _supersede(session, error)

    async def _store_bursts(self, session: _Session) -> None:
        try:
            await session.burst.run()
        except StaleRoundError as error:
            _supersede(session, error)
        except Exception as error:  # the session must end with whatever went wrong, or the aggregator would wait
            session.outbox.close(error)

    async def _store(self, session: _Session, told: list[Told]) -> None:
        # Relaxed: what a power cut takes from us the aggregator's journal has, and it asks for our last sequence.
        await self._database.relaxed(
            _store_all, session.experiment, session.epoch, told, session.actor, self._clock.now()
        )
        reports = [each for each in told if isinstance(each, pb.RoundReport)]
        if reports:
            session.outbox.put(pb.SuperviseReply(acknowledge=pb.Acknowledge(sequence=reports[-1].sequence)))

    def _kept(self, session: _Session, event: pb.Event) -> pb.Event:
        """Return an event as it is stored."""
        if event.kind not in _EVENT_KINDS:
            raise MalformedMessageError(f"an aggregator's event cannot be of kind {event.kind[:40]!r}")
        kept = pb.Event(
            experiment=session.experiment,
            site=event.site[:63],
            at=event.at or self._clock.now(),
            kind=event.kind,
            text=event.text[:_MAX_TEXT],
        )
        if event.HasField("phase"):
            kept.phase.CopyFrom(event.phase)
        return kept

    async def _status(self, session: _Session, status: pb.AggregatorStatus) -> None:
        if status.state not in _STATES:
            raise MalformedMessageError(f"a status must be one of {', '.join(_STATES)}, got {status.state[:40]!r}")
        wanted = self._change(session, _STATES[status.state], status.reason)
        if await self._database.transact(_change_if_active, session.experiment, session.epoch, wanted):
            self._listener.state_changed()

    async def _end(self, session: _Session, end: pb.ExperimentEnd) -> None:
        if end.outcome not in _OUTCOMES:
            raise MalformedMessageError(f"an outcome must be one of {', '.join(_OUTCOMES)}, got {end.outcome[:40]!r}")
        wanted = self._change(session, _OUTCOMES[end.outcome], end.reason, degraded=end.degraded)
        await self._database.transact(_change_if_active, session.experiment, session.epoch, wanted)
        _log.info("experiment ended", experiment=session.experiment, outcome=end.outcome, reason=end.reason[:_MAX_TEXT])
        session.outbox.put(pb.SuperviseReply(acknowledge=pb.Acknowledge(sequence=end.sequence)))
        session.outbox.close()
        self._listener.ended(session.experiment)

    def _change(
        self, session: _Session, to: ExperimentState, reason: str, *, degraded: bool = False
    ) -> lifecycle.Change:
        return lifecycle.Change(
            to=to, reason=reason or to.value, actor=session.actor, at=self._clock.now(), degraded=degraded
        )


def _stop_order(found: ExperimentRecord, epoch: int) -> pb.StopOrder | None:
    if found.state is ExperimentState.CANCELLED:
        return pb.StopOrder(outcome=CANCELLED, reason=found.reason)
    if found.state not in lifecycle.ACTIVE:
        return pb.StopOrder(outcome=SUPERSEDED, reason=f"the experiment is {found.state.value}: {found.reason}")
    if epoch < found.epoch:
        return pb.StopOrder(outcome=SUPERSEDED, reason=f"epoch {epoch} is over: epoch {found.epoch} was granted")
    if epoch > found.epoch:
        raise PeerError(f"epoch {epoch} was never granted: the highest is {found.epoch}")
    return None


def _supersede(session: _Session, error: StaleRoundError) -> None:
    session.outbox.put(pb.SuperviseReply(stop=pb.StopOrder(outcome=SUPERSEDED, reason=str(error))))
    session.outbox.close()


async def _end_bursts(session: _Session, storing: asyncio.Task[None]) -> None:
    """Store what still waits; if that fails the aggregator reports it again."""
    session.burst.close()
    try:
        with suppress(FederationError):
            await session.burst.flush()
    finally:  # also where the call is cancelled while this waits for the database
        storing.cancel()
        await asyncio.wait({storing})


def _store_all(session: Session, experiment: str, epoch: Epoch, told: list[Told], actor: str, now: float) -> None:
    """Store reports and events in their order."""
    experiments.require_epoch(session, experiment, epoch)
    for _, group in groupby(told, type):
        run = list(group)
        events.append_all(session, experiment, [each for each in run if isinstance(each, pb.Event)])
        reports = [each for each in run if isinstance(each, pb.RoundReport)]
        if rounds.store(session, experiment, reports, now):
            sites.note_quarantine(session, experiment, max(reports, key=lambda row: row.sequence), actor, now)


def _change_if_active(session: Session, experiment: str, epoch: Epoch, wanted: lifecycle.Change) -> bool:
    experiments.require_epoch(session, experiment, epoch)
    return experiments.change(session, experiment, wanted, epoch=epoch)
