"""Obeys the round machine: what it decides happens here, and what happens is told to it.

Rules:

1. Events are taken one at a time, in the order they happen; one that arises while another is being obeyed waits.
2. What takes time (combining, committing, writing down a miss) is done by `run`, one action after another, in the one
   thread that has spool, journal and checkpoints. Everything else is done at once.
3. Order of a commit: model files, journal line, best model, spool, verdicts, next tasks. A process killed between any
   two of these goes on in the same round or the next, and asks for nothing it was given.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from federation.aggregator.bookkeeping import RoundBook
from federation.aggregator.broadcast import Offer, Offers, fill_task
from federation.aggregator.candidates import Contribution
from federation.aggregator.models import Models
from federation.aggregator.reporting import Reporter
from federation.aggregator.sessions import Sessions
from federation.aggregator.uploads import Uploads
from federation.errors import PlanError
from federation.rounds import events
from federation.rounds.admission import Expectation
from federation.rounds.events import Phase
from federation.rounds.machine import RoundMachine
from federation.telemetry.logs import get_logger
from federation.v1 import aggregator_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from federation.aggregator.candidates import Candidate
    from federation.aggregator.checkpoints import Checkpoints
    from federation.aggregator.ledger import Ledger
    from federation.aggregator.supervision import Supervision
    from federation.aggregator.uploads import AdmittedUpdate
    from federation.names import Epoch, ExperimentId, SiteName
    from federation.plan import ExperimentSpec
    from federation.rounds.history import RoundRecord
    from federation.runtime.clock import Cancellable, Clock
    from federation.storage.spool import Spool
    from federation.telemetry.metrics import Metrics

_UNLIMITED = 1 << 53


class Driver:
    """Runs one experiment's rounds. Everything is called in the event loop.

    Args:
        experiment: its id.
        epoch: of this process.
        spec: plan and schemas.
        ledger: the open journal.
        checkpoints: model files, prepared.
        spool: uploads, not yet recovered.
        supervision: whom to report to.
        disk: the one thread that has ledger, checkpoints and spool.
        pool: threads for pieces of payloads.
        clock: where time comes from.
        metrics: where to count.
        site_grace_s: seconds a site may take to come back.

    Attributes:
        sessions: the sites' sessions.
        uploads: their uploads.
        offers: what they may fetch.
        models: the models in play.
        book: times and bytes of the round.
        machine: the round machine; `start` makes it.
    """

    machine: RoundMachine

    def __init__(
        self,
        *,
        experiment: ExperimentId,
        epoch: Epoch,
        spec: ExperimentSpec,
        ledger: Ledger,
        checkpoints: Checkpoints,
        spool: Spool,
        supervision: Supervision,
        disk: Executor,
        pool: Executor,
        clock: Clock,
        metrics: Metrics,
        site_grace_s: float,
    ) -> None:
        self.experiment = experiment
        self.epoch = epoch
        self.spec = spec
        self.sessions = Sessions(clock, site_grace_s, self.handle)
        self.uploads = Uploads(spec, spool, self, disk=disk, pool=pool, clock=clock, metrics=metrics)
        self.offers = Offers(pool)
        self.models = Models(checkpoints, self.offers, disk)
        self.book = RoundBook(clock, metrics)
        self._reporter = Reporter(supervision, self.sessions, metrics, clock)
        self._ledger = ledger
        self._checkpoints = checkpoints
        self._spool = spool
        self._disk = disk
        self._clock = clock
        self._metrics = metrics
        self._log = get_logger(__name__).bind(experiment=experiment, epoch=epoch)
        self._events: deque[events.Event] = deque()
        self._is_stepping = False
        self._work: asyncio.Queue[events.Action | Exception] = asyncio.Queue()
        self._timer: Cancellable | None = None
        self._deadline = 0.0
        self._combined: dict[SiteName, AdmittedUpdate] = {}
        self._examples: dict[SiteName, int] = {}
        self._settled_ids: dict[SiteName, bytes] = {}

    # --- what uploads and service ask

    def expectation(self) -> Expectation:
        """Return what an update must look like now."""
        return Expectation(
            experiment=self.experiment,
            epoch=self.epoch,
            round=self.machine.round,
            attempt=self.machine.attempt,
            is_open=not self.machine.has_closed,
            model_digest=self.models.digest,
            payloads=self.uploads.expected,
            metrics=self.spec.metrics,
        )

    def is_asked(self, site: SiteName) -> bool:
        """Tell whether an update of this site would be taken now; it then holds the model."""
        return self.machine.is_asked(site)

    def examples_cap(self, site: SiteName) -> int:
        """Return the most training examples this site may claim."""
        bounds = self.sessions.bounds(site)
        return min(bounds.train_examples if bounds else 0, self.spec.plan.max_examples or _UNLIMITED)

    # --- life

    async def start(self) -> None:
        """Open model and spool, and make the machine go on where the journal says.

        Raises:
            StorageError: the disk failed.
        """
        await self.models.open()
        standpoint = self._ledger.standpoint
        recovered = await self._on_disk(self._spool.recover, standpoint.round, standpoint.attempt)
        self.machine = RoundMachine(
            self.spec.plan,
            events.Resume(
                round=standpoint.round,
                attempt=standpoint.attempt,
                admitted=tuple(update.key.site for update in recovered),
                expected=standpoint.expected,
                score=standpoint.score,
            ),
            asks_all=lambda number: self._checkpoints.algorithm.asks_all(self.spec, number),
            weights=self._examples,
        )
        self._log.info("rounds begin", round=standpoint.round, attempt=standpoint.attempt, admitted=len(recovered))

    async def run(self) -> events.Finish:
        """Run rounds to the end, and return it; the journal has it.

        Raises:
            StorageError: the disk failed; a restart goes on from the journal.
        """
        finish = self._ledger.standpoint.end
        if finish is not None:
            return finish
        self._perform_all(self.machine.start())
        while finish is None:
            action = await self._work.get()
            try:
                if isinstance(action, Exception):
                    raise action
                if isinstance(action, events.Combine):
                    await self._combine(action)
                elif isinstance(action, events.Commit):
                    await self._commit(action)
                elif isinstance(action, events.RecordMiss):
                    await self._record_miss(action)
                elif isinstance(action, events.Finish):
                    finish = action
            except PlanError as error:
                finish = events.Finish("failed", f"round {self.machine.round}: {error}", self.machine.score.is_degraded)
        await self._on_disk(self._ledger.record_ended, finish)
        self._log.info("rounds ended", outcome=finish.outcome, reason=finish.reason, degraded=finish.is_degraded)
        return finish

    async def close(self) -> None:
        """Let go of timers, files and a candidate; the journal is closed by its owner."""
        if self._timer is not None:
            self._timer.cancel()
        self.sessions.stop()
        self._reporter.close()
        await self._on_disk(lambda: None)  # what was under way when we were cancelled ends first
        await self.models.close()
        self.offers.close()

    # --- events in

    def handle(self, event: events.Event) -> None:
        """Tell the machine what happened, and obey."""
        self._events.append(event)
        if self._is_stepping:
            return
        self._is_stepping = True
        try:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, events.SiteReady):
                    self._examples[event.site] = self.examples_cap(event.site)
                self._perform_all(self.machine.step(event))
                self._reporter.happened(event, self.machine)
        except Exception as error:
            # Whoever reported the event cannot mend this: `run` raises it, and the process ends.
            self._work.put_nowait(error)
        finally:
            self._is_stepping = False

    # --- actions out

    def _perform_all(self, actions: list[events.Action]) -> None:
        for action in actions:
            if isinstance(action, events.EnterPhase):
                self._enter(action)
            elif isinstance(action, events.StartTimer):
                self._start_timer(action.seconds)
            elif isinstance(action, events.StopTimer):
                self._stop_timer()
            elif isinstance(action, events.AskTrain):
                self._ask_train(action)
            elif isinstance(action, events.AskEvaluate):
                self._ask_evaluate(action)
            elif isinstance(action, events.SendVerdicts):
                self._send_verdicts(action)
            else:
                self._work.put_nowait(action)

    def _enter(self, action: events.EnterPhase) -> None:
        self.book.enter(action.phase)
        if action.phase in (Phase.AGGREGATE, Phase.MISSED):
            self.uploads.close_attempt()
        self._log.debug("phase", phase=action.phase.value, round=action.round, reason=action.reason)
        self._reporter.entered(action, self.machine)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._deadline = self._clock.monotonic() + seconds
        self._timer = self._clock.timer(seconds, lambda: self.handle(events.DeadlinePassed()))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask_train(self, action: events.AskTrain) -> None:
        offers = self.models.for_training
        self._send_task(aggregator_pb2.TASK_KIND_TRAIN, action.sites, offers)
        if all(offer.inline is not None for offer in offers):
            for site in action.sites:
                self.handle(events.ModelHeld(site))

    def _ask_evaluate(self, action: events.AskEvaluate) -> None:
        self._send_task(aggregator_pb2.TASK_KIND_EVALUATE, action.sites, self.models.for_evaluation)

    def _send_task(self, kind: aggregator_pb2.TaskKind, sites: tuple[SiteName, ...], offers: list[Offer]) -> None:
        task = aggregator_pb2.Task(
            kind=kind,
            round=self.machine.round,
            attempt=self.machine.attempt,
            epoch=self.epoch,
            deadline_s=max(self._deadline - self._clock.monotonic(), 0.001),
        )
        fill_task(task, offers)
        replies: dict[tuple[Offer, ...], aggregator_pb2.ParticipateReply] = {}
        for site in sites:
            # What a site just evaluated it trains from next. Should it have lost that, it pulls it.
            inlined = self.sessions.inlined(site)
            inside = tuple(
                offer
                for offer in offers
                if offer.inline is not None and inlined.get(offer.payload.name) != offer.payload.digest
            )
            if inside not in replies:
                replies[inside] = _with_inline(task, inside)
            if self.sessions.send(site, replies[inside]):
                for offer in inside:
                    inlined[offer.payload.name] = offer.payload.digest or b""
                    self.book.sent(site, offer.payload.name, len(offer.inline or b""))

    def _send_verdicts(self, action: events.SendVerdicts) -> None:
        for site, reason in action.reasons.items():
            update_id = self._settled_ids.get(site)
            if update_id is not None:
                self.sessions.send(site, self.make_verdict(action.round, action.attempt, update_id, reason))

    def make_verdict(
        self, round_number: int, attempt: int, update_id: bytes, reason: str
    ) -> aggregator_pb2.ParticipateReply:
        """Return the message that says what became of an update; an empty reason means that it counted."""
        return aggregator_pb2.ParticipateReply(
            verdict=aggregator_pb2.Verdict(
                round=round_number,
                attempt=attempt,
                update_id=update_id,
                epoch=self.epoch,
                counted=not reason,
                reason=reason,
            )
        )

    # --- what takes time

    async def _combine(self, action: events.Combine) -> None:
        updates = {update.site: update for update in self.uploads.admitted(action.round)}
        self._combined = {site: updates[site] for site in action.sites}
        contributions = [
            Contribution(
                site=site,
                payloads=update.payloads,
                examples=update.announcement.examples,
                steps=update.announcement.steps,
            )
            for site, update in self._combined.items()
        ]
        began = self._clock.monotonic()
        await self.models.combine(
            action.round,
            contributions,
            connected=len(self.machine.connected),
            sync=self.spec.plan.is_evaluated(action.round),
        )
        self._metrics.aggregation_seconds.observe(self._clock.monotonic() - began)
        self.handle(events.Combined())

    async def _commit(self, action: events.Commit) -> None:
        candidate = await self.models.synced()
        await self.uploads.settle()
        updates = [self._combined[site] for site in sorted(self._combined)]
        self._settled_ids = self.uploads.update_ids(action.round)
        record = self.book.record(action, candidate, updates, epoch=self.epoch)
        record = await self._on_disk(self._write_commit, action, candidate, record)
        self.models.take_over()
        self.uploads.forget_ids()
        self.book.begin()
        self._reporter.committed(record)
        self.handle(events.Committed())

    def _write_commit(self, action: events.Commit, candidate: Candidate, record: RoundRecord) -> RoundRecord:
        """Rule 3, as far as the disk is concerned."""
        candidate.commit()
        record = self._ledger.record_committed(
            record, attempt=action.attempt, score=action.score, updates=self._settled_ids
        )
        if action.is_best:
            self._checkpoints.keep_best()
        self._spool.release(action.round)
        return record

    async def _record_miss(self, action: events.RecordMiss) -> None:
        await self.uploads.settle()
        self._settled_ids = self.uploads.update_ids(action.round)
        self._log.warning("quorum missed", round=action.round, attempt=action.attempt, reason=action.reason)
        await self._on_disk(self._write_miss, action)
        self.uploads.forget_ids()
        self.handle(events.MissRecorded())

    def _write_miss(self, action: events.RecordMiss) -> None:
        self._ledger.record_missed(action.round, action.attempt, reason=action.reason, updates=self._settled_ids)
        self._spool.release(action.round)

    async def _on_disk(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)


def _with_inline(task: aggregator_pb2.Task, inside: tuple[Offer, ...]) -> aggregator_pb2.ParticipateReply:
    """Return the message with a task that has these of its payloads inside and no others."""
    digests = {offer.payload.digest for offer in inside}
    reply = aggregator_pb2.ParticipateReply(task=task)
    kept = [part for part in task.inline if part.digest in digests]
    if len(kept) < len(task.inline):
        del reply.task.inline[:]
        reply.task.inline.extend(kept)
    return reply
