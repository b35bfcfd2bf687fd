"""Envoys' sessions: who is online, what is offered, who is asked, and what each answered.

Rules, in order:

1. A site is who its certificate says. A newer session of it supersedes the older, which is told so.
2. An envoy that has seen a director with a higher lease epoch is talking to the wrong one of two, and is refused.
3. A site is asked once its offers match an experiment that has an aggregator, be it at the start or while it runs; the
   assignment is repeated at every new session and whenever the aggregator has a new address, until the experiment is
   over. An envoy that still runs something that is over is told to withdraw.
4. Answers are stored before anything follows from them. What follows is the overseer's business: it is told.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from director import lifecycle, scheduling
from director.sessions import Outbox, converse, first
from director.store import events, experiments, sites
from federation.errors import (
    ConflictError,
    InvalidNameError,
    LimitError,
    MalformedMessageError,
    NotFoundError,
    StaleRoundError,
    StorageError,
)
from federation.names import ExperimentId, FederationName, ShardName, SiteName, aggregator_server_name, check_name
from federation.telemetry.logs import get_logger
from federation.v1 import director_pb2 as pb
from federation.wire.versions import negotiate, range_from_proto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from sqlalchemy.orm import Session

    from director.logs import LogFolder
    from director.store.database import Database
    from director.store.records import ExperimentRecord, ParticipationRecord, SignedRecord
    from federation.runtime.clock import Clock
    from federation.transport.calls import Call

_MAX_SHARDS = 1000
_MAX_RANK = 32
_MAX_COUNT = 2**62
_MAX_TEXT = 1000
_ANSWERS = {
    pb.AssignmentAnswer.ANSWER_ACCEPTED: sites.ACCEPTED,
    pb.AssignmentAnswer.ANSWER_REFUSED: sites.REFUSED,
    pb.AssignmentAnswer.ANSWER_PENDING: sites.PENDING,
}
_STATUSES = {"running": sites.ACCEPTED, "finished": sites.FINISHED, "failed": sites.LOST}

_log = get_logger(__name__)


class SiteListener(Protocol):
    """Who acts on what envoys say; called on the event loop, returns at once."""

    def sites_changed(self) -> None:
        """An envoy came, left, or offers something else."""

    def answered(self, experiment: ExperimentId) -> None:
        """A site's part in the experiment changed."""


@dataclass(slots=True, kw_only=True)
class _Session:
    site: SiteName
    outbox: Outbox[pb.AttendReply] = field(default_factory=Outbox)


class Attendance:
    """The envoys' half of the director.

    Args:
        federation: this federation.
        database: where offers and answers are kept.
        logs: where released lines are kept.
        clock: for times.
        lease_epoch: epoch of this director's lease.
        listener: told of changes.
    """

    def __init__(
        self,
        *,
        federation: FederationName,
        database: Database,
        logs: LogFolder,
        clock: Clock,
        lease_epoch: int,
        listener: SiteListener,
    ) -> None:
        self._federation = federation
        self._database = database
        self._logs = logs
        self._clock = clock
        self._lease_epoch = lease_epoch
        self._listener = listener
        self._sessions: dict[SiteName, _Session] = {}

    @property
    def online(self) -> frozenset[SiteName]:
        """Sites that have a session now."""
        return frozenset(self._sessions)

    async def serve(self, requests: AsyncIterator[pb.AttendRequest], call: Call) -> AsyncIterator[pb.AttendReply]:
        """Hold one envoy's session.

        Raises:
            PeerError: the envoy broke a rule of the module, or none of its protocol versions is spoken here.
        """
        hello = (await first(requests, "hello")).hello
        version = negotiate(hello.protocol)
        if hello.director_epoch > self._lease_epoch:
            raise StaleRoundError(
                f"you have seen a director with lease epoch {hello.director_epoch}, this one has {self._lease_epoch}: "
                "another director is in charge"
            )
        session = _Session(site=SiteName(call.peer.identity.name))
        older = self._sessions.get(session.site)
        self._sessions[session.site] = session
        if older is not None:
            older.outbox.close(ConflictError(f"superseded by a newer session of envoy {session.site}"))
        try:
            await self._database.transact(
                sites.attend, session.site, range_from_proto(hello.protocol).software, self._clock.now()
            )
            _log.info("envoy attends", site=session.site)
            welcome = pb.EnvoyWelcome(protocol=version, director_epoch=self._lease_epoch, now=self._clock.now())
            session.outbox.put(pb.AttendReply(welcome=welcome))
            self._listener.sites_changed()
            await self._withdraw_ended(session, hello.running)
            await self._assign_running(session.site)
            name = f"attend {session.site}"
            talk = converse(requests, lambda request: self._handle(session, request), session.outbox, name=name)
            async with aclosing(talk) as replies:
                async for reply in replies:
                    yield reply
        finally:
            await self._leave(session)

    async def assign(self, experiment: ExperimentRecord, to: Iterable[SiteName] | None = None) -> None:
        """Ask every site online (or of `to`) that matches, and repeat the assignment to those that may take part."""
        wanted = self.online if to is None else frozenset(to) & self.online
        if not experiment.address or experiment.state not in lifecycle.ACTIVE:
            return
        parts = await self._database.transact(_ask, experiment, wanted, self._clock.now())
        if not parts:
            return
        signed = await self._database.relaxed(experiments.signed, experiment.id)
        for part in parts:
            session = self._sessions.get(part.site)
            if session is not None:
                session.outbox.put(pb.AttendReply(assignment=self._assignment(experiment, signed, part)))

    async def withdraw(self, experiment: ExperimentId, reason: str) -> None:
        """Tell every site that takes part, or may, that the experiment is over."""
        for part in await self._database.transact(sites.participations, experiment):
            session = self._sessions.get(part.site)
            if session is not None and part.answer in sites.OPEN_ANSWERS:
                _withdraw(session, experiment, reason)

    def close(self) -> None:
        """End every session; envoys redial."""
        for session in self._sessions.values():
            session.outbox.close()

    async def _handle(self, session: _Session, request: pb.AttendRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "offers":
            await self._offer(session, request.offers)
        elif kind == "answer":
            await self._answer(session, request.answer)
        elif kind == "status":
            await self._status(session, request.status)
        elif kind == "logs":
            await self._release(session, request.logs)
        else:
            raise MalformedMessageError(f"after hello an envoy sends offers, answer, status or logs, not {kind}")

    async def _offer(self, session: _Session, offers: pb.ShardOffers) -> None:
        shards = _read_offers(offers.shards)
        await self._database.transact(sites.offer, session.site, shards, self._clock.now())
        self._listener.sites_changed()
        await self._assign_running(session.site)

    async def _answer(self, session: _Session, answer: pb.AssignmentAnswer) -> None:
        if answer.answer not in _ANSWERS:
            raise MalformedMessageError(f"an answer must be accepted, refused or pending, got {answer.answer}")
        await self._note(session, answer.experiment, _ANSWERS[answer.answer], answer.reason[:512])

    async def _status(self, session: _Session, status: pb.ParticipationStatus) -> None:
        if status.state not in _STATUSES:
            raise MalformedMessageError(f"a status must be one of {', '.join(_STATUSES)}, got {status.state[:40]!r}")
        reason = status.error_class[:128]
        if status.detail:
            reason = f"{reason}: {status.detail[:4096]}"
        await self._note(session, status.experiment, _STATUSES[status.state], reason)

    async def _note(self, session: _Session, experiment: str, to: str, reason: str) -> None:
        now = self._clock.now()
        try:
            changed = await self._database.transact(_note_answer, experiment, session.site, to, reason, now)
        except NotFoundError as error:
            # An envoy may remember what a director that lost its database does not; the session is worth keeping.
            _log.warning("answer to nothing that was asked", site=session.site, reason=str(error))
            _withdraw(session, experiment, str(error))
            return
        if changed:
            _log.info("site answered", site=session.site, experiment=experiment, answer=to, reason=reason)
            self._listener.answered(ExperimentId(experiment))

    async def _release(self, session: _Session, released: pb.ReleasedLogs) -> None:
        part = await self._database.relaxed(sites.participation, released.experiment, session.site)
        if part is None:
            raise NotFoundError(f"site {session.site} takes no part in experiment {released.experiment[:80]!r}")
        await self._logs.append(part.experiment, session.site, released.lines)
        self._database.announce(part.experiment)

    async def _withdraw_ended(self, session: _Session, running: Sequence[str]) -> None:
        for experiment in running:
            try:
                found = await self._database.relaxed(experiments.get, experiment)
            except NotFoundError as error:
                _withdraw(session, experiment, str(error))
                continue
            if found.state.is_terminal:
                _withdraw(session, experiment, f"the experiment is {found.state.value}: {found.reason}")

    async def _assign_running(self, site: SiteName) -> None:
        for experiment in await self._database.relaxed(experiments.find, states=lifecycle.ACTIVE):
            await self.assign(experiment, [site])

    async def _leave(self, session: _Session) -> None:
        if self._sessions.get(session.site) is session:
            del self._sessions[session.site]
            self._listener.sites_changed()
            _log.info("envoy left", site=session.site)
        with suppress(StorageError):
            await asyncio.shield(self._database.transact(sites.leave, session.site, self._clock.now()))

    def _assignment(
        self, experiment: ExperimentRecord, signed: SignedRecord, part: ParticipationRecord
    ) -> pb.Assignment:
        return pb.Assignment(
            experiment=experiment.id,
            shards=part.shards,
            aggregator_address=experiment.address,
            aggregator_server_name=aggregator_server_name(self._federation, experiment.id),
            manifest=signed.manifest,
            signature=signed.signature,
            signing_key=signed.signing_key,
            submitted_by=experiment.submitted_by,
            bundle_bytes=experiment.bundle_bytes,
        )


def _withdraw(session: _Session, experiment: str, reason: str) -> None:
    session.outbox.put(pb.AttendReply(withdrawal=pb.Withdrawal(experiment=experiment, reason=reason)))


def _ask(
    session: Session, experiment: ExperimentRecord, online: frozenset[SiteName], now: float
) -> list[ParticipationRecord]:
    """Ask the sites that match, and return the parts of all of `online` that may be taken."""
    found = [scheduling.match(experiment.need, site) for site in sites.offers(session, online) if site.online]
    sites.ask(session, experiment.id, [match for match in found if match is not None], now)
    parts = sites.participations(session, experiment.id)
    return [part for part in parts if part.site in online and part.answer in sites.OPEN_ANSWERS]


def _note_answer(session: Session, experiment: str, site: str, to: str, reason: str, now: float) -> bool:
    changed = sites.answer(session, experiment, site, to=to, reason=reason, at=now)
    if changed and to in (sites.ACCEPTED, sites.REFUSED):
        admitted = to == sites.ACCEPTED
        events.audit(
            session, at=now, actor=site, action="Assignment", admitted=admitted, subject=experiment, detail=reason
        )
    return changed


def _read_offers(offers: Sequence[pb.ShardOffer]) -> list[scheduling.Shard]:
    if len(offers) > _MAX_SHARDS:
        raise LimitError(f"a site may offer {_MAX_SHARDS} shards, got {len(offers)}")
    names = [offer.name for offer in offers]
    if len(set(names)) != len(names):
        raise MalformedMessageError("two shards of one site have the same name")
    return [_read_offer(offer) for offer in offers]


def _read_offer(offer: pb.ShardOffer) -> scheduling.Shard:
    try:
        name = ShardName(check_name(offer.name, "shard name"))
        kind = check_name(offer.kind, "shard kind")
    except InvalidNameError as error:
        raise MalformedMessageError(str(error)) from error
    shapes = (tuple(offer.sample_shape), tuple(offer.target_shape))
    if any(len(shape) > _MAX_RANK for shape in shapes):
        raise MalformedMessageError(f"a shape of shard {name} has more than {_MAX_RANK} dimensions")
    if max(offer.train_examples, offer.validation_examples, *shapes[0], *shapes[1]) > _MAX_COUNT:
        raise MalformedMessageError(f"a number of shard {name} is beyond {_MAX_COUNT}")
    return scheduling.Shard(
        name=name,
        kind=kind,
        train_examples=offer.train_examples,
        validation_examples=offer.validation_examples,
        sample_shape=shapes[0],
        target_shape=shapes[1],
        description=offer.description[:_MAX_TEXT],
    )
