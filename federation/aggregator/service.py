"""The aggregator's gRPC service: what collaborators may call, and what they must say.

Who calls is the certificate's say (role envoy, name = site). Rules:

1. A session begins with a hello for this experiment, this spec and a common protocol. The welcome comes first, then the
   verdict on an update the site still keeps, then, once the site is ready, tasks. Before it is ready a site says
   nothing but that it never will be.
2. What answers a task is checked against that task; an answer to an earlier one says only that its site is done with
   that, for it may have crossed the next task on the way. What cannot mean anything ends the session.
3. A sealed message is passed on unread to a site that has a session now, with the sender's name.
4. A small update may come in the session. One that is admitted is answered by its verdict, which comes in any case;
   one that is not, at once. Should the session be cut in between, the site is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING

from federation.errors import (
    InvalidNameError,
    LimitError,
    MalformedMessageError,
    NotFoundError,
    PeerError,
    StorageError,
    TransportError,
    UpdateRejectedError,
)
from federation.names import Attempt, RoundNumber, SiteName, check_name
from federation.plan import check_metrics
from federation.rounds import events
from federation.telemetry.logs import get_logger
from federation.v1 import aggregator_pb2 as pb
from federation.wire.payloads import payload_to_proto
from federation.wire.updates import MAX_COUNT, metrics_from_proto
from federation.wire.versions import negotiate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federation.aggregator.driver import Driver
    from federation.aggregator.ledger import Ledger
    from federation.aggregator.sessions import Session
    from federation.names import Digest
    from federation.transport.calls import Call
    from federation.wire.pieces import MessagePiece

_ERROR_CLASS = re.compile(r"[A-Za-z0-9_.]{1,128}")
_MAX_DETAIL_BYTES = 4096
_MAX_SEALED_BYTES = 1 << 20
_MAX_PURPOSE = 64


class AggregatorService:
    """Implements ``federation.v1.Aggregator``.

    Args:
        driver: runs the rounds.
        ledger: knows what became of earlier updates.
        spec_digest: SHA-256 of the signed spec.
    """

    def __init__(self, driver: Driver, ledger: Ledger, spec_digest: Digest) -> None:
        self._driver = driver
        self._sessions = driver.sessions
        self._ledger = ledger
        self._spec_digest = spec_digest
        self._log = get_logger(__name__).bind(experiment=driver.experiment)

    async def Participate(
        self, requests: AsyncIterator[pb.ParticipateRequest], call: Call
    ) -> AsyncIterator[pb.ParticipateReply]:
        """Hold a site's session."""
        site = SiteName(call.peer.identity.name)
        hello = await self._read_hello(requests)
        session = await self._sessions.open(site, call)
        reader = asyncio.create_task(self._read(session, requests), name=f"aggregator/session {site}")
        reader.add_done_callback(lambda _: session.end())
        self._log.info("session begins", site=site)
        try:
            yield pb.ParticipateReply(welcome=self._welcome(hello))
            for verdict in self._late_verdicts(site, hello):
                yield verdict
            while (reply := await session.receive()) is not None:
                yield reply
                if reply.HasField("finish"):
                    return
            if reader.done():
                reader.result()
        finally:
            self._sessions.close(session)
            reader.cancel()
            await asyncio.wait({reader})
            with contextlib.suppress(asyncio.CancelledError, Exception):
                reader.result()  # raised above if it mattered
            self._log.info("session ends", site=site)

    async def PullModel(self, request: pb.PullModelRequest, call: Call) -> AsyncIterator[pb.PullModelReply | bytes]:
        """Send a payload over a line if the site takes one and there is one, else stream it, encoded by hand."""
        site = SiteName(call.peer.identity.name)
        self._check_experiment(request.experiment)
        self._check_member(site)
        offer = self._driver.offers.find(request.digest)
        for_line = offer.payload.encoded_bytes - request.offset if request.takes_ticket else 0
        with offer.pulled(), self._driver.lines.issue(call.peer, for_line) as ticket:
            if ticket is not None:
                yield pb.PullModelReply(ticket=ticket.id)
                await self._driver.offers.send(offer, request.offset, ticket, self._driver.lines)
            else:
                async with contextlib.aclosing(self._driver.offers.pull(offer, request.offset)) as replies:
                    async for reply in replies:
                        yield reply
        self._driver.book.sent(site, offer.payload.name, offer.payload.encoded_bytes - request.offset)
        if offer in self._driver.models.for_training:
            self._driver.handle(events.ModelHeld(site))

    async def PushUpdate(
        self, requests: AsyncIterator[pb.PushUpdateRequest | MessagePiece], call: Call
    ) -> AsyncIterator[pb.PushUpdateReply]:
        """Take an update."""
        site = SiteName(call.peer.identity.name)
        self._check_member(site)
        async with contextlib.aclosing(self._driver.uploads.receive(site, requests, call)) as replies:
            async for reply in replies:
                yield reply

    # --- sessions

    async def _read_hello(self, requests: AsyncIterator[pb.ParticipateRequest]) -> pb.SiteHello:
        async for request in requests:
            if not request.HasField("hello"):
                break
            hello = request.hello
            negotiate(hello.protocol)
            self._check_experiment(hello.experiment)
            if hello.plan_digest != self._spec_digest:
                raise PeerError(
                    f"the site verified plan {hello.plan_digest.hex()[:16]!r}, this aggregator runs "
                    f"{self._spec_digest.hex()[:16]!r}: they are not of the same submission"
                )
            return hello
        raise MalformedMessageError("a session begins with its hello")

    def _welcome(self, hello: pb.SiteHello) -> pb.SessionWelcome:
        return pb.SessionWelcome(
            protocol=negotiate(hello.protocol),
            epoch=self._driver.epoch,
            round=self._ledger.standpoint.round,
            plan_digest=self._spec_digest,
            base=payload_to_proto(self._driver.models.base.payload),
            takes_updates=True,
            bulk_port=self._driver.lines.port,
        )

    def _late_verdicts(self, site: SiteName, hello: pb.SiteHello) -> list[pb.ParticipateReply]:
        """Verdicts on an update the site still keeps; none while its attempt is in progress."""
        if not hello.HasField("pending"):
            return []
        pending, driver = hello.pending, self._driver
        asking = (RoundNumber(pending.round), Attempt(pending.attempt))
        for fact in self._ledger.settled.get(site, ()):
            if (fact.round, fact.attempt, fact.update_id) == (*asking, pending.update_id):
                return [driver.dispatch.make_verdict(asking, fact.update_id, fact.reason)]
        if driver.gathering.is_over(site, asking):
            return [driver.dispatch.make_verdict(asking, pending.update_id, "late")]
        return []

    async def _read(self, session: Session, requests: AsyncIterator[pb.ParticipateRequest]) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if not self._sessions.is_current(session):
                return
            if kind == "ready":
                self._on_ready(session, request.ready)
            elif session.bounds is None and not (kind == "failed" and request.failed.permanent):
                raise MalformedMessageError(f"{kind} before ready: a site says that it is ready first")
            elif kind == "evaluated":
                self._on_evaluated(session.site, request.evaluated)
            elif kind == "update":
                await self._on_update(session, request.update)
            elif kind == "failed":
                self._on_failed(session, request.failed)
            elif kind == "sealed":
                self._on_sealed(session.site, request.sealed)
            else:
                raise MalformedMessageError(f"{kind or 'an unknown message'} is not expected in a session")

    def _on_ready(self, session: Session, ready: pb.SiteReady) -> None:
        if not 1 <= ready.train_examples <= MAX_COUNT or ready.validation_examples > MAX_COUNT:
            raise MalformedMessageError(
                f"ready with {ready.train_examples} training and {ready.validation_examples} validation examples; "
                "expected at least one training example"
            )
        if ready.work_round > self._driver.spec.plan.rounds:
            raise MalformedMessageError(f"ready, and at work on round {ready.work_round}, which the plan does not have")
        task = (RoundNumber(ready.work_round), Attempt(ready.work_attempt))
        self._sessions.set_ready(
            session,
            train_examples=ready.train_examples,
            validation_examples=ready.validation_examples,
            at_work=task if ready.work_round else None,
        )

    def _on_evaluated(self, site: SiteName, result: pb.EvaluationResult) -> None:
        if not self._is_open_evaluation(site, result):
            self._driver.handle(events.SiteFree(site, RoundNumber(result.round)))
            return
        metrics = metrics_from_proto(result.metrics, "evaluation metrics", must_be_finite=False)
        bounds = self._sessions.bounds(site)
        cap = bounds.validation_examples if bounds else 0
        try:
            check_metrics(metrics, self._driver.spec.metrics)
            if result.examples > cap:
                raise ValueError(f"{result.examples} validation examples, at most {cap} are there")
        except ValueError as error:
            # A lie about metrics costs the site its say, not the federation its round.
            self._log.warning("evaluation refused", site=site, reason=str(error))
            self._driver.handle(events.SiteFailed(site, f"evaluation refused: {error}"))
            return
        self._driver.handle(events.SiteEvaluated(site, result.examples, metrics))

    def _is_open_evaluation(self, site: SiteName, result: pb.EvaluationResult) -> bool:
        driver = self._driver
        return (
            (result.round, result.epoch) == (driver.machine.round, driver.epoch)
            and result.model_digest == driver.models.candidate_digest
            and driver.machine.is_evaluating(site)
        )

    async def _on_update(self, session: Session, update: pb.WholeUpdate) -> None:
        """Take an update that came in the session; only a refusal is answered (rule 4)."""
        try:
            await self._driver.uploads.take(session.site, update)
        except TransportError:
            return  # superseded by one that is on its way
        except (UpdateRejectedError, StorageError) as error:
            is_refused = isinstance(error, UpdateRejectedError)
            refused = pb.UpdateResult(
                update_id=update.header.update_id,
                reason=error.refusal.value if isinstance(error, UpdateRejectedError) else "",
                detail=str(error) if is_refused else "the aggregator could not store it",
            )
            if not is_refused:
                self._log.error("an update could not be stored", site=session.site, exc_info=error)
            if self._sessions.is_current(session):
                self._sessions.send(session.site, pb.ParticipateReply(refused=refused))

    def _on_failed(self, session: Session, failure: pb.TaskFailure) -> None:
        if not _ERROR_CLASS.fullmatch(failure.error_class) or len(failure.detail.encode()) > _MAX_DETAIL_BYTES:
            raise MalformedMessageError("a failure names an error class of letters, digits, dots and underscores")
        machine, site = self._driver.machine, session.site
        if failure.kind == pb.TASK_KIND_TRAIN:
            is_open = machine.is_asked(site) and self._driver.gathering.is_present(site, failure.round)
        else:
            is_open = machine.is_evaluating(site) and failure.round == machine.round
        session.has_left = session.has_left or failure.permanent
        if failure.permanent or (is_open and failure.epoch == self._driver.epoch):
            reason = failure.error_class + (f": {failure.detail}" if failure.detail else "")
            self._driver.handle(events.SiteFailed(site, reason, failure.permanent))
        else:
            self._driver.handle(events.SiteFree(site, RoundNumber(failure.round)))

    def _on_sealed(self, site: SiteName, message: pb.SealedMessage) -> None:
        if len(message.body) > _MAX_SEALED_BYTES or len(message.purpose) > _MAX_PURPOSE:
            raise LimitError(f"a sealed message has at most {_MAX_SEALED_BYTES} bytes, its purpose {_MAX_PURPOSE}")
        try:
            peer = SiteName(check_name(message.peer, "peer"))
        except InvalidNameError as error:
            raise MalformedMessageError(str(error)) from error
        if not self._sessions.is_member(peer):
            raise NotFoundError(f"{peer} is not among the sites of this experiment")
        passed = pb.SealedMessage()
        passed.CopyFrom(message)
        passed.peer = site
        passed.epoch = self._driver.epoch
        if not self._sessions.send(peer, pb.ParticipateReply(sealed=passed), when_ready=False):
            self._log.info("sealed message dropped: its receiver is not here", site=site, peer=peer)

    def _check_experiment(self, experiment: str) -> None:
        if experiment != self._driver.experiment:
            raise NotFoundError(f"there is no experiment {experiment[:63]!r} here")

    def _check_member(self, site: SiteName) -> None:
        if not self._sessions.is_member(site):
            raise NotFoundError(f"{site} is not among the sites of this experiment")
