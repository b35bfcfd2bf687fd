"""What one task does: fetch, train or evaluate, check, keep, send. One thing at a time, in the order it was asked.

The trainer works on one order at a time and cannot be interrupted; fetching and sending can, and are, once they serve a
round that is over. Whatever happens, the aggregator is told an error's class and nothing more, unless the policy
releases more, and the round goes on without this site.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from federation.collaborator import exchange as files
from federation.collaborator import protection
from federation.collaborator.kept_updates import answers, asking_of, digests_of
from federation.compression import load_codec, max_payload_bytes
from federation.errors import FederationError, Refusal, StorageError, TaskError, UpdateRejectedError
from federation.names import Digest, Epoch, PayloadName
from federation.runtime.threads import in_thread, started
from federation.storage.retained import RetainedFile, RetainedUpdate
from federation.telemetry.logs import get_logger
from federation.v1 import aggregator_pb2, trainer_pb2
from federation.wire import payloads
from federation.wire.payloads import Payload
from federation.wire.updates import UPDATE_ID_BYTES, UpdateAnnouncement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from federation.collaborator.config import CollaboratorConfig
    from federation.collaborator.downloads import Downloads
    from federation.collaborator.exchange import Exchange
    from federation.collaborator.tasks import TaskOrder
    from federation.collaborator.uploads import Uploads
    from federation.collaborator.warm_trainer import WarmTrainer
    from federation.plan import ExperimentSpec, PayloadPlan
    from federation.storage.retained import Retention
    from federation.telemetry.metrics import Metrics

_log = get_logger(__name__)
_SMALL_BYTES = 256 << 10


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True, kw_only=True)
class Work:
    """The site's part of a round.

    Attributes:
        config: what the envoy fixed.
        spec: the signed spec.
        exchange: files shared with the trainer.
        downloads: fetches payloads.
        uploads: sends updates.
        trainer: the trainer.
        retention: the update that waits for its verdict, durable.
        metrics: what is counted.
        retained: the same update; None if none waits.
        shard: what the trainer found, once prepared.
    """

    config: CollaboratorConfig
    spec: ExperimentSpec
    exchange: Exchange
    downloads: Downloads
    uploads: Uploads
    trainer: WarmTrainer
    retention: Retention
    metrics: Metrics
    retained: RetainedUpdate | None = None
    shard: trainer_pb2.TrainerPrepared | None = None
    _keeps_nothing: bool = False  # the trainer said so of the kept update; unknown of one of an earlier process
    _is_admitted: bool = False  # of the kept update
    _left_trainer: asyncio.Event = field(default_factory=_set_event)

    @property
    def is_interruptible(self) -> bool:
        """Whether cancelling the present task costs nothing: it fetches or sends, or waits for another trainer."""
        return self._left_trainer.is_set() or self.trainer.is_pausing

    def is_fetching(self, order: TaskOrder) -> bool:
        """Whether what a train task needs is still being fetched, if it is the present one: nothing is trained yet."""
        return self.is_interruptible and (self.retained is None or not answers(self.retained, order))

    async def interruptible(self) -> None:
        """Return once cancelling costs nothing, which need not last."""
        await self._left_trainer.wait()

    def asked_again(self) -> None:
        """Note that the present train task was asked once more: an update that waits to be sent is sent at once."""
        self.uploads.asked_again()

    def recover(self) -> None:
        """Find the update an earlier process kept, if its files still hold it; blocks."""
        update = self.retention.current()
        if update is not None and self.retention.verify(update):
            self.retained = update

    async def prepare(self, base: Payload | None) -> trainer_pb2.TrainerPrepared:
        """Make the trainer ready for tasks.

        Args:
            base: the payload that is delivered once; None if there is none.

        Raises:
            TaskError: the experiment does not load here.
            ConfigurationError: no trainer can be started here.
        """
        if base is not None:
            path = await self.downloads.single(files.BASE, base, {})
            self.trainer.order.base_file = str(path)
        for plan in self.spec.uploads():
            # An encoded payload is cut to its size each round: room for it would be given back at once. Nor may what is
            # kept be cut: an earlier process's update lies there, and waits to be sent or for its verdict.
            is_encoded = plan.codec != payloads.IDENTITY_CODEC
            if not (is_encoded and self.retained is not None):
                room = 0 if is_encoded else plan.schema.nbytes
                await in_thread(_make_room, self.exchange.path(self.exchange.sent(plan.name)), room)
        with self._in_trainer():
            self.shard = await self.trainer.prepare()
        return self.shard

    async def train(self, order: TaskOrder) -> None:
        """Do a train task to its end: the update is admitted, or refused for good, or gone through the session.

        Raises:
            TaskError: experiment code failed, or handed over what may not leave.
            FederationError: fetching or storing failed.
        """
        update = self.retained
        if update is None or not answers(update, order):
            update = await self._train(order)
        try:
            digests = await self.uploads.push(update)
        except UpdateRejectedError as error:
            self.note_refusal(update, error.refusal, str(error))
            await self.settle(counted=False)
            return
        if digests is not None:
            self.note_admitted(update)
            self._know(update, digests)

    async def seal(self) -> None:
        """Digest what the kept update was kept without, so that it outlives the machine's stop too.

        It may be sent meanwhile: should it be settled before, nothing is noted. Cancelled, this reads no further.

        Raises:
            StorageError: a file cannot be read.
        """
        update = self.retained
        if update is None or update.is_digested:
            return
        is_over = threading.Event()
        async with started(digests_of, update, is_over.is_set) as reading:
            try:
                digests = await asyncio.shield(reading)
            finally:
                is_over.set()
        if self.retained is update:
            self._know(update, digests)

    def _know(self, update: RetainedUpdate, digests: Sequence[Digest]) -> None:
        """Note the digests of the kept update's payloads, if they are news; none: they were not told."""
        if not digests or update.is_digested:
            return
        files = tuple(replace(file, digest=digest) for file, digest in zip(update.files, digests, strict=True))
        known = replace(update, files=files)
        try:
            self.retention.keep(known)
        except StorageError as error:  # the update is as good as before, and admitted perhaps
            _log.warning("the digests of the kept update could not be noted: %s", error, round=update.round)
            return
        self.retained = known

    def note_admitted(self, update: RetainedUpdate) -> None:
        """Log and count, once, that the kept update was admitted: its call said so, or only its verdict did."""
        if self._is_admitted:
            return
        self._is_admitted = True
        self.metrics.updates_admitted_total.inc()
        _log.info("the update of %s is admitted", asking_of(update), round=update.round)

    def note_refusal(self, update: RetainedUpdate, refusal: Refusal | None, text: str) -> None:
        """Log and count that an update was refused for good; None: for a reason that is not the update's."""
        asking = asking_of(update)
        reason = refusal.value if refusal is not None else "at the aggregator"
        _log.warning("the update of %s was refused (%s): %s", asking, reason, text, round=asking.round)
        if refusal is not None:
            self.metrics.updates_refused_total.labels(reason).inc()

    async def evaluate(self, order: TaskOrder) -> aggregator_pb2.EvaluationResult:
        """Do an evaluate task and return its answer, without an epoch yet; errors as `train`."""
        shard = self._prepared()
        model = await self.downloads.model(order.model, order.inline, order.step)
        message = trainer_pb2.RunEvaluation(round=order.asking.round, model_file=str(model))
        with self._in_trainer():
            done = await self.trainer.do("evaluate", lambda it: it.evaluate(message, timeout_s=_patience_s(order)))
        claim = protection.check_evaluation(
            protection.EvaluationClaim(examples=done.examples, metrics=dict(done.metrics), seconds=done.seconds),
            shard_examples=shard.validation_examples,
            metrics=self.spec.metrics,
        )
        self.metrics.local_evaluation_seconds.observe(claim.seconds)
        for name, value in claim.metrics.items():
            self.metrics.set_evaluation_metric(name, value, self.config.site)
        return aggregator_pb2.EvaluationResult(
            round=order.asking.round,
            metrics=dict(claim.metrics),
            examples=claim.examples,
            seconds=claim.seconds,
            model_digest=order.model_digest,
        )

    async def settle(self, *, counted: bool) -> None:
        """Tell the trainer what became of the kept update, if it holds state of that round, then forget it.

        In this order: a crash in between only means that the trainer is told the same once more.
        """
        update = self.retained
        if update is None:
            return
        if not self._keeps_nothing:
            await self._tell_trainer(update, counted=counted)
        self.retention.release(update.round)
        self.retained = None
        self._keeps_nothing = self._is_admitted = False

    async def _tell_trainer(self, update: RetainedUpdate, *, counted: bool) -> None:
        try:
            with self._in_trainer():
                await self.trainer.do("keep", lambda it: it.keep(update.round, attempt=update.attempt, counted=counted))
        except TaskError as error:
            # The committed model has the update either way; what is lost is state of this site's own.
            _log.warning(
                "the trainer could not keep its state of round %d: %s",
                update.round,
                error.error_class,
                round=update.round,
            )

    def failure(self, order: TaskOrder | None, error: FederationError, epoch: Epoch) -> aggregator_pb2.TaskFailure:
        """Return what the aggregator is told of a failure: its class, and more only if the policy says so.

        Args:
            order: the task that failed; None if the site could not prepare for any.
            error: how.
            epoch: of the session.
        """
        task_error = error if isinstance(error, TaskError) else None
        detail = (task_error.traceback if task_error else "") or str(error)
        return aggregator_pb2.TaskFailure(
            round=order.asking.round if order else 0,
            epoch=epoch,
            kind=order.kind if order else aggregator_pb2.TASK_KIND_TRAIN,
            error_class=task_error.error_class if task_error else type(error).__name__,
            detail=detail.encode()[-4096:].decode(errors="ignore") if self.config.release_tracebacks else "",
            permanent=order is None or (task_error is not None and task_error.permanent),
        )

    async def _train(self, order: TaskOrder) -> RetainedUpdate:
        shard = self._prepared()
        if self.retained is not None:
            # Its verdict never came and it is too late to ask: what it left at the trainer is not promoted.
            await self.settle(counted=False)
        message = await self._training_order(order)
        with self._in_trainer():
            done = await self.trainer.do("train", lambda it: it.train(message, timeout_s=_patience_s(order)))
            claim = protection.check_training(
                protection.TrainingClaim(
                    examples=done.examples,
                    steps=done.steps,
                    metrics=dict(done.metrics),
                    seconds=done.seconds,
                    oracle_calls=done.oracle_calls,
                    peak_memory=done.peak_memory,
                ),
                shard_examples=shard.train_examples,
                metrics=self.spec.metrics,
            )
            update = await self._keep(order, claim)
            self._keeps_nothing = done.keeps_nothing
        self.metrics.local_training_seconds.observe(claim.seconds)
        for name, value in claim.metrics.items():
            self.metrics.set_train_metric(name, value, self.config.site)
        return update

    async def _training_order(self, order: TaskOrder) -> trainer_pb2.RunTraining:
        model = await self.downloads.model(order.model, order.inline, order.step)
        message = trainer_pb2.RunTraining(
            round=order.asking.round,
            attempt=order.asking.attempt,
            model_file=str(model),
            delta_file=str(self.exchange.path(files.DELTA)),
        )
        if self.spec.schema_.buffers:
            message.buffers_file = str(self.exchange.path(files.BUFFERS))
        if self.spec.optimizer_tensors:
            message.optimizer_out = str(self.exchange.path(files.OPTIMIZER_OUT))
        if order.optimizer is not None:
            path = await self.downloads.single(files.OPTIMIZER_IN, order.optimizer, order.inline)
            message.optimizer_in = str(path)
        for name, payload in order.extras.items():
            path = await self.downloads.single(self.exchange.received(name), payload, order.inline)
            message.inputs[name] = str(path)
        for row in self.spec.uplink:
            message.outputs[row.name] = str(self.exchange.path(self.exchange.sent(PayloadName(row.name))))
        return message

    async def _keep(self, order: TaskOrder, claim: protection.TrainingClaim) -> RetainedUpdate:
        """Check what the trainer wrote, as far as it is not checked while it is sent, and keep it until its verdict."""
        kept, announced = [], []
        for plan in self.spec.uploads():
            path = self.exchange.path(self.exchange.sent(plan.name))
            is_small = plan.schema.nbytes <= _SMALL_BYTES
            nbytes, digest = _check(path, plan) if is_small else await in_thread(_check, path, plan)
            kept.append(RetainedFile(payload=plan.name, path=path, nbytes=nbytes, digest=digest))
            announced.append(
                Payload(name=plan.name, schema_digest=plan.schema.digest, codec=plan.codec, encoded_bytes=nbytes)
            )
        announcement = UpdateAnnouncement(
            experiment=self.config.experiment,
            update_id=secrets.token_bytes(UPDATE_ID_BYTES),
            attempt=order.asking.attempt,
            epoch=Epoch(1),  # each sending puts its session's in
            round=order.asking.round,
            payloads=tuple(announced),
            examples=claim.examples,
            metrics=claim.metrics,
            train_seconds=claim.seconds,
            model_digest=order.model_digest,
            steps=claim.steps,
            oracle_calls=claim.oracle_calls,
            peak_memory=claim.peak_memory,
        )
        update = RetainedUpdate(
            round=order.asking.round,
            attempt=order.asking.attempt,
            header=announcement.to_bytes(),
            files=tuple(kept),
        )
        self.retention.keep(update)  # one small write that waits for no disk: a thread would cost more
        self.retained = update
        return update

    def _prepared(self) -> trainer_pb2.TrainerPrepared:
        if self.shard is None:
            raise RuntimeError("tasks are done only once the trainer is prepared")
        return self.shard

    @contextlib.contextmanager
    def _in_trainer(self) -> Iterator[None]:
        self._left_trainer.clear()
        try:
            yield
        finally:
            self._left_trainer.set()


def _check(path: Path, plan: PayloadPlan) -> tuple[int, Digest | None]:
    """Check a payload the trainer wrote; returns the bytes that travel and their digest.

    None: it is checked while it is sent, and has its size so far.
    """
    if plan.codec == payloads.IDENTITY_CODEC:
        nbytes = plan.schema.nbytes
        descriptor = files.open_result(path, nbytes)
    else:
        descriptor, nbytes = files.open_encoded(path, max_payload_bytes(plan.schema, load_codec(plan.codec)))
    try:
        if plan.codec == payloads.IDENTITY_CODEC and nbytes > _SMALL_BYTES:
            return nbytes, None
        if plan.codec == payloads.IDENTITY_CODEC:
            return nbytes, protection.check_payload(descriptor, plan.schema, plan.name)
        return nbytes, protection.check_encoded(descriptor, nbytes, plan)
    finally:
        os.close(descriptor)


def _make_room(path: Path, nbytes: int) -> None:
    """Make the file a trainer writes into, with its room reserved."""
    os.close(files.open_for_write(path, nbytes))


def _patience_s(order: TaskOrder) -> float:
    """How long a trainer may take: twice what the round waits, and a minute at least; then it is taken to hang."""
    return max(2 * order.deadline_s, order.deadline_s + 60.0)
