"""The queue between the session, which hears what is asked, and the work, which does one thing at a time.

Rules:

1. What is asked is checked against `ordering` when it is heard; what is stale is dropped, what the plan does not allow
   ends the site's part.
2. Tasks and verdicts are worked on in the order they were heard. A task that is asked again while it waits, or is being
   worked on, is one task, and its update is sent without further delay; one that was answered is answered again from
   what is held. An answer has the epoch of the session in which it is given.
3. A newer asking makes waiting older ones void; if the present work only fetches or sends for an older one, or waits
   for a trainer in place of one that died, it is ended.
4. Being asked to evaluate a round says that it takes no more updates: who is late does not begin to train for it. What
   was trained already is sent all the same, for it may have counted. Should an aggregator that was started again ask
   once more, that is a new asking.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federation.collaborator import kept_updates, ordering, uploads
from federation.collaborator.ordering import UnsignedPlanError
from federation.collaborator.tasks import TaskOrder, read_task
from federation.errors import (
    ConfigurationError,
    ConflictError,
    FederationError,
    IdentityError,
    NotFoundError,
    StaleRoundError,
    TaskError,
)
from federation.telemetry.logs import get_logger
from federation.v1 import aggregator_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.collaborator.link import LinkHolder
    from federation.collaborator.ordering import Progress
    from federation.collaborator.state import StateFile
    from federation.collaborator.work import Work
    from federation.names import Digest, Epoch, RoundNumber
    from federation.plan import ExperimentSpec
    from federation.wire.payloads import Payload

_log = get_logger(__name__)
_MAX_DETAIL = 500


class CannotTakePartError(FederationError):
    """This site can do no task of this experiment, now or later.

    Attributes:
        error_class: what the user is told.
    """

    def __init__(self, error_class: str, text: str) -> None:
        super().__init__(text)
        self.error_class = error_class


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settle:
    """A verdict on the update kept under this id."""

    update_id: bytes
    counted: bool


@dataclass(slots=True, kw_only=True)
class TaskQueue:
    """What is asked, what is being done, what was answered.

    Attributes:
        spec: the signed spec.
        plan_digest: digest of the spec as signed.
        initial_model: digest of the first model, as signed.
        work: does it.
        links: where answers go.
        state: where progress is kept.
        progress: how far the site has come.
        on_round: called when work on a round begins.
    """

    spec: ExperimentSpec
    plan_digest: Digest
    initial_model: Digest
    work: Work
    links: LinkHolder
    state: StateFile
    progress: Progress
    on_round: Callable[[RoundNumber], None]
    is_ready: bool = False
    _waiting: deque[TaskOrder | _Settle] = field(default_factory=deque)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _present: TaskOrder | None = None
    _job: asyncio.Task[None] | None = None
    _is_closing: bool = False
    _round: RoundNumber | None = None
    _evaluated: tuple[TaskOrder, aggregator_pb2.EvaluationResult] | None = None

    def welcome(self, message: aggregator_pb2.SessionWelcome) -> None:
        """Obey an aggregator's welcome.

        Raises:
            StaleRoundError: a superseded aggregator.
            UnsignedPlanError: it runs another plan.
            StorageError: the epoch could not be made durable.
        """
        before = self.progress
        self.progress = ordering.obey_welcome(
            before,
            self.spec.plan,
            self.plan_digest,
            epoch=message.epoch,
            round_number=message.round,
            digest=message.plan_digest,
        )
        if self.progress.epoch != before.epoch:
            self.state.save(self.progress, durable=True)

    def post_task(self, message: aggregator_pb2.Task) -> None:
        """Take a task in.

        Raises:
            UnsignedPlanError: it is beyond the signed plan.
            MalformedMessageError: it cannot mean anything.
        """
        order = read_task(message, self.spec, self.initial_model)
        try:
            if order.is_training:
                self.progress = ordering.obey_train(self.progress, self.spec.plan, order.asking, epoch=message.epoch)
            else:
                self.progress = ordering.obey_evaluate(
                    self.progress, self.spec.plan, order.asking.round, epoch=message.epoch
                )
        except StaleRoundError as error:
            _log.warning("a task is not obeyed: %s", error, round=order.asking.round)
            return
        if self._is_known(order):
            if order.is_training and self._present is not None and self._present.is_same(order):
                self.work.asked_again()
            return
        waiting = [each for each in self._waiting if isinstance(each, TaskOrder)]
        for void in [each for each in waiting if self._is_void(each) or _is_too_late(each, order)]:
            self._waiting.remove(void)
        self._waiting.append(order)
        self._interrupt_void()
        present = self._under_way
        if present is not None and _is_too_late(present, order) and self.work.is_fetching(present):
            self._interrupt()
        self._news.set()

    def post_verdict(self, message: aggregator_pb2.Verdict) -> None:
        """Take a verdict in, if it is about the kept update."""
        update = self.work.retained
        if update is None or message.update_id != kept_updates.update_id(update) or message.epoch < self.progress.epoch:
            return
        asking = kept_updates.asking_of(update)
        if message.counted:
            self.work.note_admitted(update)
        else:
            _log.info("the update of %s did not count: %s", asking, message.reason, round=asking.round)
        self.progress = ordering.obey_verdict(self.progress, asking, counted=message.counted)
        self._waiting.append(_Settle(update_id=message.update_id, counted=message.counted))
        self._interrupt_void()
        self._news.set()

    def post_refused(self, message: aggregator_pb2.UpdateResult) -> None:
        """Take in that the kept update, sent in the session, was not admitted.

        An aggregator that was restarted may not have come as far as we have: it will ask for the update, then.
        """
        update = self.work.retained
        if update is None or message.update_id != kept_updates.update_id(update):
            return
        refusal = uploads.read_refusal(message)
        is_settled = any(isinstance(each, _Settle) and each.update_id == message.update_id for each in self._waiting)
        if refusal in uploads.NOT_YET or is_settled:  # its verdict came first, to the same update sent once before
            return
        self.work.note_refusal(update, refusal, message.detail[:_MAX_DETAIL])
        self._waiting.append(_Settle(update_id=message.update_id, counted=False))
        self._news.set()

    def trainer_paused(self) -> None:
        """End the present task if nobody wants it any more: its trainer died, and another would begin anew."""
        present = self._under_way
        if present is None:
            return
        waiting = [each for each in self._waiting if isinstance(each, TaskOrder)]
        if self._is_closing or self._is_void(present) or any(_is_too_late(present, each) for each in waiting):
            self._interrupt()

    async def announce(self) -> None:
        """Tell the aggregator that tasks may come, if they may."""
        shard = self.work.shard
        if self.is_ready and shard is not None:
            ready = aggregator_pb2.SiteReady(
                train_examples=shard.train_examples, validation_examples=shard.validation_examples
            )
            present = self._under_way
            if present is not None and present.is_training:
                ready.work_round, ready.work_attempt = present.asking.round, present.asking.attempt
            await self.links.say(aggregator_pb2.ParticipateRequest(ready=ready))

    async def run(self, base: Payload | None) -> None:
        """Prepare, then work for ever.

        Args:
            base: the payload that is delivered once; None if there is none.

        Raises:
            CannotTakePartError: a failure that is permanent, which the aggregator was told.
        """
        try:
            await self.work.prepare(base)
        except (TaskError, ConfigurationError) as error:
            await self._give_up(None, error)
        self.is_ready = True
        await self.announce()
        while not self._is_closing:
            while not self._waiting:
                self._news.clear()
                await self._news.wait()
                if self._is_closing:
                    return
            await self._do(self._waiting.popleft())

    async def close(self) -> None:
        """Take nothing more, and return once the present work has ended.

        What only waits for an aggregator that is not there is not waited for: a finished update is kept, and is sent
        after the next start. Nor is a trainer that died replaced once more.
        """
        self._is_closing = True
        self._waiting.clear()
        self._news.set()
        job = self._job
        if job is None:
            return
        if self.work.trainer.is_pausing:
            self._interrupt()
        stranded = asyncio.create_task(self._stranded(), name="stranded")
        try:
            await asyncio.wait({job, stranded}, return_when=asyncio.FIRST_COMPLETED)
            job.cancel()
        finally:
            stranded.cancel()
            await asyncio.gather(stranded, return_exceptions=True)

    async def _stranded(self) -> None:
        """Return once the work is out of the trainer and there is no aggregator to fetch from or to send to."""
        while self.links.current is not None or not self.work.is_interruptible:
            await self.links.lost()
            await self.work.interruptible()

    async def _do(self, item: TaskOrder | _Settle) -> None:
        if isinstance(item, _Settle):
            update = self.work.retained
            # A task that was asked before the refusal of another's update has settled that, and keeps one of its own.
            if update is not None and kept_updates.update_id(update) == item.update_id:
                await self.work.settle(counted=item.counted)
            self.state.save(self.progress, durable=False)  # one small write that waits for no disk
            return
        if self._is_void(item):
            return
        if item.asking.round != self._round:
            self._round = item.asking.round
            self.on_round(self._round)
        self._present = item
        self._job = asyncio.create_task(self._obey(item), name=f"task-round-{item.asking.round}")
        try:
            await asyncio.wait({self._job})
            if not self._job.cancelled():
                self._job.result()
        finally:
            self._job.cancel()
            with contextlib.suppress(asyncio.CancelledError, FederationError):
                await self._job
            self._present = self._job = None

    async def _obey(self, order: TaskOrder) -> None:
        try:
            if order.is_training:
                await self.work.train(order)
            else:
                await self._evaluate(order)
        except (StaleRoundError, ConflictError, NotFoundError, IdentityError) as error:
            _log.info("work on %s is not wanted any more: %s", order.asking, error, round=order.asking.round)
            if order.is_training:
                await self.work.settle(counted=False)
        except UnsignedPlanError:
            raise
        except FederationError as error:
            self._log_failure(order, error)
            if order.is_training:
                await self.work.settle(counted=False)
            if isinstance(error, ConfigurationError) or (isinstance(error, TaskError) and error.permanent):
                await self._give_up(order, error)
            await self.links.say(aggregator_pb2.ParticipateRequest(failed=self.work.failure(order, error, self._epoch)))

    async def _evaluate(self, order: TaskOrder) -> None:
        if self._evaluated is None or not self._evaluated[0].is_same(order):
            self._evaluated = (order, await self.work.evaluate(order))
        result = aggregator_pb2.EvaluationResult()
        result.CopyFrom(self._evaluated[1])
        result.epoch = self._epoch  # the present session's: the aggregator may have been started again meanwhile
        await self.links.say(aggregator_pb2.ParticipateRequest(evaluated=result))

    async def _give_up(self, order: TaskOrder | None, error: FederationError) -> None:
        failure = self.work.failure(order, error, self._epoch)
        failure.permanent = True
        self._log_failure(order, error)
        await self.links.say(aggregator_pb2.ParticipateRequest(failed=failure))
        raise CannotTakePartError(failure.error_class, failure.detail) from error

    def _log_failure(self, order: TaskOrder | None, error: FederationError) -> None:
        self.work.metrics.trainer_failures_total.inc()
        doing = "preparing" if order is None else f"{'training' if order.is_training else 'evaluation'} {order.asking}"
        said = f"{error.error_class}\n{error.traceback}" if isinstance(error, TaskError) else str(error)
        _log.error("%s failed: %s", doing, said, round=order.asking.round if order else 0)

    @property
    def _under_way(self) -> TaskOrder | None:
        # Work that has ended is done though nobody has looked yet: what is asked now is asked anew.
        return self._present if self._job is not None and not self._job.done() else None

    def _is_known(self, order: TaskOrder) -> bool:
        known = [self._under_way, *self._waiting]
        return any(isinstance(each, TaskOrder) and each.is_same(order) for each in known)

    def _is_void(self, order: TaskOrder) -> bool:
        if order.is_training:
            return order.asking < self.progress.newest or order.asking <= self.progress.settled
        return order.asking.round < self.progress.round

    def _interrupt_void(self) -> None:
        if self._present is not None and self._is_void(self._present):
            self._interrupt()

    def _interrupt(self) -> None:
        if self._job is not None and self.work.is_interruptible:
            self._job.cancel()

    @property
    def _epoch(self) -> Epoch:
        return self.progress.epoch


def _is_too_late(order: TaskOrder, heard: TaskOrder) -> bool:
    """Whether a task is to train for a round whose model is to be evaluated already (rule 4)."""
    return order.is_training and not heard.is_training and order.asking.round <= heard.asking.round
