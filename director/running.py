"""Keeps one aggregator per running experiment alive, over crashes and restarts of the director.

Rules, in order:

1. An aggregator that ends while its experiment is not over has crashed: it is started again with the next epoch,
   after a wait that doubles, at most `max_restarts` times without a round committed in between; then the experiment
   fails. One that ended because its disk is full is started again as long as it takes: to fail would throw away the
   rounds that are committed, and no other start would do better.
2. Once its experiment is over an aggregator gets `end_s` to leave by itself and is stopped after that. Its folder
   then keeps its logs only.
3. Draining stops aggregators and leaves their experiments running in the database; releasing leaves both running.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from director import lifecycle
from director.launcher import LaunchOrder
from director.logs import KEPT_FILES
from director.store import events, experiments
from federation.errors import FederationError, StorageError
from federation.names import Epoch, ExperimentId, ExperimentState
from federation.runtime.clock import pause
from federation.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from director.launcher import AggregatorProcess, Launcher
    from director.store.database import Database
    from director.store.records import ExperimentRecord
    from federation.runtime.clock import Clock
    from federation.runtime.tasks import Supervisor
    from federation.telemetry.metrics import Metrics

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often and how long; fields are those of `director.config`.

    Attributes:
        max_restarts: restarts of an aggregator without a round in between.
        end_s: seconds an aggregator has to leave once its experiment is over.
        drain_s: seconds it has to stop when the director drains.
        restart_s: first wait before a restart; doubled each time.
        restart_max_s: longest such wait.
    """

    max_restarts: int
    end_s: float
    drain_s: float
    restart_s: float
    restart_max_s: float


@dataclass(slots=True, kw_only=True)
class _Run:
    experiment: ExperimentId
    process: AggregatorProcess | None
    granted: Epoch | None
    trouble: str = ""  # why it cannot be looked after, as its owner was told
    over: asyncio.Event = field(default_factory=asyncio.Event)


class _Ended(NamedTuple):
    how: str
    is_disk_full: bool


class Aggregators:
    """The aggregators that run, or should.

    Args:
        actor: SPIFFE id of the director.
        database: the store.
        launcher: starts aggregators.
        work: folder with one folder per experiment.
        clock: for times and waits.
        metrics: aggregators that run, and restarts.
        patience: see `Patience`.
        tasks: where each aggregator's task runs.
        give_up: fails an experiment whose aggregator cannot be kept alive: experiment, reason.
        left: called once an experiment is over and its aggregator has gone.
    """

    def __init__(
        self,
        *,
        actor: str,
        database: Database,
        launcher: Launcher,
        work: Path,
        clock: Clock,
        metrics: Metrics,
        patience: Patience,
        tasks: Supervisor,
        give_up: Callable[[ExperimentId, str], Awaitable[None]],
        left: Callable[[ExperimentId], Awaitable[None]],
    ) -> None:
        self._actor = actor
        self._database = database
        self._launcher = launcher
        self._work = work
        self._clock = clock
        self._metrics = metrics
        self._patience = patience
        self._tasks = tasks
        self._give_up = give_up
        self._left = left
        self._runs: dict[ExperimentId, _Run] = {}
        self._draining = False

    def begin(self, experiment: ExperimentId, granted: Epoch) -> None:
        """Start the aggregator of an experiment that was just granted its first epoch."""
        self._begin(_Run(experiment=experiment, process=None, granted=granted))

    def resume(self, active: list[ExperimentId]) -> None:
        """Go on with what an earlier director left: adopt what runs, restart what does not, stop what should not."""
        for experiment in active:
            adopted = self._launcher.adopt(self._work / experiment)
            _log.info("experiment goes on", experiment=experiment, aggregator_runs=adopted is not None)
            self._begin(_Run(experiment=experiment, process=adopted, granted=None))
        for folder in sorted(self._work.iterdir()) if self._work.exists() else ():
            if ExperimentId(folder.name) not in self._runs:
                stray = self._launcher.adopt(folder)
                if stray is not None:
                    _log.warning("stopping the aggregator of an experiment that is over", experiment=folder.name)
                    self._tasks.job(f"stop stray {folder.name}", stray.stop(self._patience.end_s))

    def end(self, experiment: ExperimentId) -> None:
        """The experiment is over: its aggregator is to leave."""
        run = self._runs.get(experiment)
        if run is not None:
            run.over.set()

    def is_running(self, experiment: ExperimentId) -> bool:
        """Tell whether the experiment's aggregator runs, or will be started again."""
        return experiment in self._runs

    async def drain(self, stop_now: asyncio.Event) -> None:
        """Stop every aggregator, at once when `stop_now` is set; their experiments go on at the next start."""
        self._draining = True
        processes = [run.process for run in self._runs.values() if run.process is not None]
        if not processes:
            return
        everything = asyncio.create_task(self._stop_all(processes), name="stop aggregators")
        hurry = asyncio.create_task(stop_now.wait(), name="hurry")
        try:
            await asyncio.wait({everything, hurry}, return_when=asyncio.FIRST_COMPLETED)
            if not everything.done():
                for process in processes:
                    process.kill()
            await everything
        finally:
            hurry.cancel()

    async def _stop_all(self, processes: list[AggregatorProcess]) -> None:
        await asyncio.gather(*(process.stop(self._patience.drain_s) for process in processes))

    def release(self) -> None:
        """Leave the aggregators running for a later director: this one ends because something is wrong with it."""
        self._draining = True
        for run in self._runs.values():
            if run.process is not None:
                run.process.release()

    def _begin(self, run: _Run) -> None:
        self._runs[run.experiment] = run
        self._tasks.job(f"run {run.experiment}", self._run(run))

    async def _run(self, run: _Run) -> None:
        try:
            await self._keep_running(run)
            if not self._draining:
                await asyncio.to_thread(_clear, self._work / run.experiment)
        finally:
            if self._runs.get(run.experiment) is run:
                del self._runs[run.experiment]
        if not self._draining:
            await self._left(run.experiment)

    async def _keep_running(self, run: _Run) -> None:
        """Return when the experiment is over and its aggregator has left, or when the director drains."""
        crashes = without_room = rounds_seen = 0
        while not self._draining:
            try:
                found = await self._database.relaxed(experiments.get, run.experiment)
                if run.process is None and found.state not in lifecycle.ACTIVE:
                    return
                ended = await self._launch_and_watch(run, found)
                found = await self._database.relaxed(experiments.get, run.experiment)
                if not self._is_wanted(found):
                    return
                if found.rounds_done > rounds_seen:
                    crashes = without_room = 0
                rounds_seen = found.rounds_done
                crashes, without_room = crashes + (not ended.is_disk_full), without_room + ended.is_disk_full
                await self._note_crash(found, crashes, ended, is_news=not ended.is_disk_full or without_room == 1)
                if crashes > self._patience.max_restarts:
                    reason = f"its aggregator ended {crashes} times without finishing a round; last: {ended.how}"
                    await self._give_up(run.experiment, reason)
                    return
            except StorageError as error:
                # Not the aggregator's fault, so nothing is counted: look again when disk or database may be back.
                _log.error("experiment cannot be looked after", experiment=run.experiment, reason=str(error))
                await self._note_trouble(run, str(error))
            await self._back_off(run, max(1, crashes + without_room))

    def _is_wanted(self, found: ExperimentRecord) -> bool:
        return not self._draining and found.state in lifecycle.ACTIVE

    async def _launch_and_watch(self, run: _Run, found: ExperimentRecord) -> _Ended:
        """Start the aggregator unless it runs; return how it ended, or why it could not be started."""
        if run.process is None:
            try:
                await self._launch(run, found)
            except StorageError:
                raise
            except FederationError as error:
                return _Ended(f"it could not be started: {error}", is_disk_full=False)
        return await self._watch(run)

    async def _launch(self, run: _Run, found: ExperimentRecord) -> None:
        epoch, run.granted = run.granted, None
        if epoch is None:
            goes_on = lifecycle.Change(
                to=ExperimentState.RUNNING, reason="restarted", actor=self._actor, at=self._clock.now()
            )
            epoch = await self._database.transact(experiments.grant_epoch, found.id, found.epoch, goes_on)
        order = LaunchOrder(experiment=found.id, epoch=epoch, folder=self._work / found.id)
        run.process = await self._launcher.launch(order)
        run.trouble = ""
        _log.info("aggregator started", experiment=found.id, epoch=epoch)

    async def _watch(self, run: _Run) -> _Ended:
        """Return how the run's process ended; once the experiment is over see to it that it does."""
        process = run.process
        if process is None:
            raise RuntimeError(f"no aggregator of {run.experiment} to watch")
        self._count()
        leaving = asyncio.create_task(process.wait(), name=f"wait for {run.experiment}")
        over = asyncio.create_task(run.over.wait(), name=f"over {run.experiment}")
        try:
            await asyncio.wait({leaving, over}, return_when=asyncio.FIRST_COMPLETED)
            if not leaving.done():
                await asyncio.wait({leaving}, timeout=self._patience.end_s)
            if not leaving.done():
                _log.warning("aggregator did not leave by itself", experiment=run.experiment)
                await process.stop(self._patience.end_s)
            ending = await leaving
            return _Ended(str(ending), is_disk_full=ending.is_disk_full)
        finally:
            leaving.cancel()
            over.cancel()
            run.process = None
            self._count()

    async def _back_off(self, run: _Run, crashes: int) -> None:
        wait_s = min(self._patience.restart_s * 2 ** (crashes - 1), self._patience.restart_max_s)
        await pause(self._clock, wait_s, run.over.wait())

    async def _note_crash(self, found: ExperimentRecord, crashes: int, ended: _Ended, *, is_news: bool) -> None:
        _log.error("aggregator ended", experiment=found.id, epoch=found.epoch, crashes=crashes, how=ended.how)
        self._metrics.child_restarts_total.labels(kind="aggregator").inc()
        if not is_news:
            return
        again = "; it is started again until there is room" if ended.is_disk_full else ""
        text = f"the aggregator of epoch {found.epoch} ended: {ended.how}{again}"
        await self._database.transact(events.append_text, found.id, kind="audit", text=text, at=self._clock.now())

    async def _note_trouble(self, run: _Run, reason: str) -> None:
        """Tell the owner, once for each reason, why nothing happens; the database permitting."""
        if reason != run.trouble:
            run.trouble = reason
            text = f"its aggregator cannot be looked after, and that is tried again: {reason}"
            with suppress(StorageError):
                await self._database.transact(
                    events.append_text, run.experiment, kind="audit", text=text, at=self._clock.now()
                )

    def _count(self) -> None:
        number = sum(run.process is not None for run in self._runs.values())
        self._metrics.children.labels(kind="aggregator").set(number)


def _clear(folder: Path) -> None:
    """Remove what an experiment that is over needs no more: spool, journal, models, keys. Its logs stay."""
    for entry in folder.iterdir() if folder.exists() else ():
        if entry.name in KEPT_FILES:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
