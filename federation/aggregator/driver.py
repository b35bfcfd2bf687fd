"""Obeys the round machine: what it decides happens here, and what happens is told to it.

Rules:

1. Events are taken one at a time, in the order they happen; one that arises while another is being obeyed waits.
2. What takes time (combining, committing, writing down a miss, or who is asked where that must be known) is done by
   `run`, one action after another, in the one thread that has spool, journal and checkpoints; the rest is done at once.
3. Order of a commit: model files, durable where that can be while sites evaluate them; journal line, durable; best
   model, spool, verdicts, next tasks. A process killed between any two of these goes on in the same round or the next,
   and asks for nothing it was given.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from typing import TYPE_CHECKING

from federation.aggregator.bookkeeping import RoundBook
from federation.aggregator.broadcast import Offers
from federation.aggregator.buffering import BufferGathering
from federation.aggregator.candidates import Contribution
from federation.aggregator.dispatch import Dispatch
from federation.aggregator.gathering import Asking, Gathering, RoundGathering, Setting, Stores
from federation.aggregator.models import Models
from federation.aggregator.reporting import Reporter
from federation.aggregator.sessions import Sessions
from federation.aggregator.uploads import Uploads
from federation.errors import PlanError
from federation.rounds import events
from federation.telemetry.logs import get_logger
from federation.v1 import aggregator_pb2

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from federation.aggregator.admitted import AdmittedUpdate
    from federation.aggregator.candidates import Candidate
    from federation.aggregator.checkpoints import Checkpoints
    from federation.aggregator.ledger import Ledger
    from federation.aggregator.supervision import Supervision
    from federation.names import Epoch, ExperimentId, SiteName
    from federation.plan import ExperimentSpec
    from federation.rounds.admission import Expectation, NormWindow
    from federation.rounds.asynchronous import Machine
    from federation.rounds.history import RoundRecord
    from federation.runtime.clock import Cancellable, Clock
    from federation.storage.spool import Spool
    from federation.telemetry.metrics import Metrics
    from federation.transport.bulk import BulkServer

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
        lines: over which large payloads come and go.
        clock: where time comes from.
        metrics: where to count.
        site_grace_s: seconds a site may take to come back.

    Attributes:
        lines: over which large payloads come and go.
        sessions: the sites' sessions.
        uploads: their uploads.
        offers: what they may fetch.
        models: the models in play.
        book: times and bytes of the round.
        dispatch: sends tasks and verdicts.
        gathering: how updates are gathered.
    """

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
        lines: BulkServer,
        clock: Clock,
        metrics: Metrics,
        site_grace_s: float,
    ) -> None:
        self.experiment = experiment
        self.epoch = epoch
        self.spec = spec
        self.lines = lines
        self.sessions = Sessions(clock, site_grace_s, self.handle)
        self.uploads = Uploads(spec, spool, self, disk=disk, pool=pool, lines=lines, clock=clock, metrics=metrics)
        self.offers = Offers(pool, metrics)
        self.models = Models(checkpoints, self.offers, disk)
        self.book = RoundBook(clock, metrics, byzantine=spec.plan.byzantine)
        self.dispatch = Dispatch(self.sessions, self.book, epoch)
        self._reporter = Reporter(supervision, self.sessions, metrics, clock)
        self._stores = Stores(ledger=ledger, checkpoints=checkpoints, spool=spool, disk=disk)
        self._clock = clock
        self._metrics = metrics
        self._log = get_logger(__name__).bind(experiment=experiment, epoch=epoch)
        self._events: deque[events.Event] = deque()
        self._is_stepping = False
        self._work: asyncio.Queue[events.Action | Exception] = asyncio.Queue()
        self._unwritten = 0  # notes of who is there, on their way to the journal
        self._timer: Cancellable | None = None
        self._deadline = 0.0
        self._task_timers: dict[SiteName, tuple[Asking, Cancellable]] = {}
        self._combined: dict[SiteName, AdmittedUpdate] = {}
        self._examples: dict[SiteName, int] = {}
        self._settled_ids: dict[SiteName, bytes] = {}
        setting = Setting(
            experiment=experiment,
            epoch=epoch,
            spec=spec,
            stores=self._stores,
            models=self.models,
            uploads=self.uploads,
            weights=self._examples,
        )
        is_buffered = checkpoints.algorithm.mode == "buffer"
        self.gathering: Gathering = BufferGathering(setting, self.offers) if is_buffered else RoundGathering(setting)

    @property
    def machine(self) -> Machine:
        """The round machine; there once `start` has returned."""
        return self.gathering.machine

    # --- what uploads and service ask

    def expectation(self, site: SiteName) -> Expectation:
        """Return what an update of this site must look like now."""
        return self.gathering.expectation(site)

    def is_asked(self, site: SiteName) -> bool:
        """Tell whether an update of this site would be taken now; it then holds the model."""
        return self.machine.is_asked(site)

    def examples_cap(self, site: SiteName) -> int:
        """Return the most training examples this site may claim."""
        bounds = self.sessions.bounds(site)
        return min(bounds.train_examples if bounds else 0, self.spec.plan.max_examples or _UNLIMITED)

    @property
    def norms(self) -> NormWindow:
        """Norms of the last committed rounds."""
        return self._stores.ledger.standpoint.norms

    # --- life

    async def start(self) -> None:
        """Open model and spool, and make the machine go on where the journal says.

        Raises:
            StorageError: the disk failed.
        """
        await self.models.open()
        admitted = await self.gathering.open()
        machine = self.machine
        self._log.info("rounds begin", round=machine.round, attempt=machine.attempt, admitted=admitted)

    async def run(self) -> events.Finish:
        """Run rounds to the end, and return it; the journal has it.

        Raises:
            StorageError: the disk failed; a restart goes on from the journal.
        """
        finish = self._stores.ledger.standpoint.end
        if finish is not None:
            return finish
        self._perform_all(self.machine.start())
        while finish is None:
            action = await self._work.get()
            try:
                if isinstance(action, Exception):
                    raise action
                if isinstance(action, events.AskTrain):
                    self._ask_train(await self.gathering.prepare(action))
                elif isinstance(action, events.Combine):
                    await self._combine(action)
                elif isinstance(action, events.Commit):
                    await self._commit(action)
                elif isinstance(action, events.RecordMiss):
                    await self._record_miss(action)
                elif isinstance(action, events.RecordPresent):
                    await self._stores.do(self._stores.ledger.record_present, action.sites, action.drawn)
                    self._unwritten -= 1
                elif isinstance(action, events.RecordRelease):
                    await self._stores.do(
                        self._stores.ledger.record_released, action.site, action.releases, action.drawn
                    )
                    self._reporter.released(action, self.machine)
                elif isinstance(action, events.Finish):
                    finish = action
            except PlanError as error:
                finish = events.Finish("failed", f"round {self.machine.round}: {error}", self.machine.score.is_degraded)
        await self._stores.do(self._stores.ledger.record_ended, finish)
        self._log.info("rounds ended", outcome=finish.outcome, reason=finish.reason, degraded=finish.is_degraded)
        return finish

    async def close(self) -> None:
        """Let go of timers, files and a candidate; the journal is closed by its owner."""
        if self._timer is not None:
            self._timer.cancel()
        for _, timer in self._task_timers.values():
            timer.cancel()
        self.sessions.stop()
        self._reporter.close()
        await self._stores.do(lambda: None)  # what was under way when we were cancelled ends first
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
                if isinstance(event, events.SiteLost):
                    self.uploads.interrupt(event.site)
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
            elif isinstance(action, events.AskTrain) and self.gathering.asks_at_once and not self._unwritten:
                self._ask_train(action)
            elif isinstance(action, events.AskEvaluate):
                self._ask_evaluate(action)
            elif isinstance(action, events.SendVerdicts):
                self._send_verdicts(action)
            else:
                self._unwritten += isinstance(action, events.RecordPresent)
                self._work.put_nowait(action)

    def _enter(self, action: events.EnterPhase) -> None:
        self.book.enter(action.phase)
        self.gathering.entered(action.phase)
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
        if not action.sites:
            return
        offers = self.gathering.offers(action)
        left_s = (
            self._deadline - self._clock.monotonic() if self.gathering.deadline_s is None else self.gathering.deadline_s
        )
        self.dispatch.task(
            aggregator_pb2.TASK_KIND_TRAIN,
            (action.round, action.attempt),
            action.sites,
            offers,
            deadline_s=left_s,
        )
        self._time(action)
        if all(offer.inline is not None for offer in offers):
            for site in action.sites:
                self.handle(events.ModelHeld(site))

    def _time(self, action: events.AskTrain) -> None:
        """Report, some time from now, that sites have had the time for their task, unless they are told it again."""
        if action.overdue_s is None:
            return
        asking = (action.round, action.attempt)
        for site in action.sites:
            known, timer = self._task_timers.get(site, (None, None))
            if known == asking:
                continue
            if timer is not None:
                timer.cancel()
            overdue = functools.partial(self.handle, events.TaskOverdue(site, *asking))
            self._task_timers[site] = (asking, self._clock.timer(action.overdue_s, overdue))

    def _ask_evaluate(self, action: events.AskEvaluate) -> None:
        self.dispatch.task(
            aggregator_pb2.TASK_KIND_EVALUATE,
            (action.round, self.machine.attempt),
            action.sites,
            self.models.for_evaluation,
            deadline_s=self._deadline - self._clock.monotonic(),
        )

    def _send_verdicts(self, action: events.SendVerdicts) -> None:
        for site, reason in action.reasons.items():
            update_id = self._settled_ids.get(site)
            if update_id is not None:
                asking = action.asked.get(site, (action.round, action.attempt))
                self.dispatch.verdict(site, asking, update_id, reason)

    # --- what takes time

    async def _combine(self, action: events.Combine) -> None:
        self._combined = self.gathering.updates(action)
        contributions = [
            Contribution(
                site=site,
                payloads=update.payloads,
                examples=update.announcement.examples,
                steps=update.announcement.steps,
                staleness=action.round - action.asked.get(site, action.round),
                base=self.gathering.base(update),
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
        candidate = self.models.candidate
        self.handle(events.Combined(candidate.scores if candidate is not None else {}))

    async def _commit(self, action: events.Commit) -> None:
        candidate = await self.models.synced()
        self._settled_ids = await self.gathering.settle(action)
        updates = [self._combined[site] for site in sorted(self._combined)]
        record = self.book.record(action, candidate, updates, epoch=self.epoch)
        record = await self._stores.do(self._write_commit, action, candidate, record)
        self.models.take_over()
        self.book.begin()
        self._reporter.committed(record)
        self.handle(events.Committed())
        self._reporter.show(record)  # after what sites wait for

    def _write_commit(self, action: events.Commit, candidate: Candidate, record: RoundRecord) -> RoundRecord:
        """Rule 3, as far as the disk is concerned."""
        checkpoints = self._stores.checkpoints
        checkpoints.sync(candidate)
        record = self.gathering.write_commit(action, record, self._settled_ids)
        checkpoints.take(candidate)
        if action.is_best:
            checkpoints.keep_best()
        self.gathering.release(action)
        return record

    async def _record_miss(self, action: events.RecordMiss) -> None:
        self._settled_ids = await self.gathering.settle(action)
        self._log.warning("quorum missed", round=action.round, attempt=action.attempt, reason=action.reason)
        await self._stores.do(self.gathering.write_miss, action, self._settled_ids)
        self.handle(events.MissRecorded())
