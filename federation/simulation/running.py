"""`simulate`: an experiment from its folder or object to its last model, in this process and its workers.

In order: the run folder is locked (`federation.storage.ownership`); the experiment is built and its data divided
(`federation.simulation.setting`); workers are started, before torch works in this process; the run folder is opened
and, if it is a run that was stopped, models, history and what sites keep are brought to its last checkpoint; the engine
runs.

One seed gives one result, whatever the number of workers, and the result that a federation of the same sites gives.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from federation.algorithms import Algorithm
from federation.data.shard import count_examples
from federation.errors import PlanError
from federation.names import RoundNumber
from federation.rounds import events
from federation.simulation.bench import Premises
from federation.simulation.engine import Engine
from federation.simulation.hostile import HostileSites, attack_success, poisoned
from federation.simulation.interruption import Interruption
from federation.simulation.launching import Crew, launch
from federation.simulation.machine import machine_of
from federation.simulation.memory import Layout
from federation.simulation.models import Models
from federation.simulation.population import report_of
from federation.simulation.roles import NoSpans, Spans
from federation.simulation.run_folder import RunFolder, Standpoint
from federation.simulation.setting import Setting, describe, prepare
from federation.simulation.under_way import UnderWay
from federation.storage.ownership import owned
from federation.tensors import pack
from federation.tracking import Together
from federation.training.seeding import seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federation.attacks import Attack
    from federation.data.partitions.report import PartitionReport
    from federation.data.shard import Shard
    from federation.names import SiteName
    from federation.plan import ExperimentSpec
    from federation.rounds.history import RoundRecord
    from federation.simulation.bench import Failure
    from federation.simulation.script import Script
    from federation.simulation.times import TimeModel
    from federation.tensors.buffers import Array
    from federation.training.experiment import Experiment

CHECKPOINT_ROUNDS = 10
CHECKPOINT_S = 10.0
"""A checkpoint is written after every tenth round, and after a round that ends this long after the last one."""
CHECKPOINT_SHARE = 20
"""But not before this many times what the last one took has passed: of asynchronous runs it holds all updates."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a simulation gave.

    Attributes:
        spec: what ran.
        records: every committed round, in order.
        arrays: the last model, whole, by tensor name; owned by the caller.
        best: the best model by the plan's measure, whole; the last one if nothing was evaluated.
        best_round: its round; 0 if nothing was evaluated.
        outcome: ``completed`` or ``failed``.
        reason: why it ended.
        folder: its run folder; None without one.
        report: how the data was divided; None if targets are no classes.
        attack_success: share of honest sites' triggered validation examples for which the last model does as a
            backdoor wants; None without one, or where the task measures no accuracy.
        failures: what sites' tasks raised in this call, in order: round, site, and class, text and traceback.
    """

    spec: ExperimentSpec
    records: tuple[RoundRecord, ...]
    arrays: dict[str, Array]
    best: dict[str, Array]
    best_round: int
    outcome: str
    reason: str
    folder: Path | None = None
    report: PartitionReport | None = None
    attack_success: float | None = None
    failures: tuple[tuple[RoundNumber, SiteName, Failure], ...] = ()


def simulate(
    experiment: Experiment | Path | str,
    *,
    sites: int | Sequence[str] = 10,
    data: Shard | Mapping[str, Shard] | Callable[[], Shard] | str | None = None,
    partition: str = "iid",
    sample: int | None = None,
    workers: int = 1,
    executor: Literal["serial", "processes", "threads", "ray"] | None = None,
    device: str | None = None,
    ray_address: str | None = None,
    folder: Path | str | None = None,
    seed: int | None = None,
    on_round: Callable[[RoundRecord], None] | None = None,
    script: Script | None = None,
    times: TimeModel | None = None,
    resume: bool = True,
    trackers: Sequence[Any] = (),
    profile: Spans | None = None,
    changes: Mapping[str, Any] | None = None,
    label: str = "",
    command: str = "",
    attack: Attack | str | None = None,
    hostile: int | Sequence[str] = (),
) -> RunResult:
    """Run an experiment on simulated sites, to the model that a federation of the same sites would give.

    Args:
        experiment: the experiment, or its folder.
        sites: how many, or their names.
        data: a shard with the whole dataset, a callable or ``"module:Class[:json]"`` that gives one, or each site's
            shard by name. None: what the experiment names.
        partition: how the whole is divided, such as ``"dirichlet:0.3"``.
        sample: sites asked each round, instead of the plan's.
        workers: how many sites train at once.
        executor: ``serial``, ``processes``, ``threads`` or ``ray``. None: serial for one worker; for more, threads on a
            GPU and else processes.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``, instead of what the task says. Other devices give other bits.
        ray_address: of a running Ray cluster, such as ``auto``, for executor ray. None: one is started for the run.
        folder: run folder, made if missing; None: nothing is written, and the run cannot be resumed.
        seed: root seed instead of the plan's; also decides the division of the data.
        on_round: told of each round after its commit.
        script: failures, losses, delays, late joiners.
        times: what takes how long; deadlines of the plan are then enforced, in simulated time.
        resume: go on with the run in `folder`, if there is one; False: begin anew.
        trackers: told of the start, each round and the end; a run that goes on or is over is shown from its first
            round. See `federation.tracking`.
        profile: where times of the parts are noted; see `federation.simulation.profiling`.
        changes: plan fields to replace, or entries of one, such as ``{"options.mu": 0.1}``; with another algorithm or
            rule the plan's options of the old one go.
        label: what comparisons call the run.
        command: for the run folder: how it was asked for.
        attack: what hostile sites do, such as ``"ipm:2"`` or ``"alie:opt"``; see `federation.attacks`. They see all
            honest updates of the round, and what they send is admitted as everybody's is.
        hostile: which sites are hostile, or how many: the last in name order.

    Raises:
        PlanError: experiment, plan, data or script do not go together; the text says what to change.
        ConfigurationError: the executor is not available here.
        ConflictError: `folder` is of another plan, or another run has it now.
        SimulationError: a worker died, twice.
        StorageError: the run folder cannot be read or written.
        KeyboardInterrupt: Ctrl-C; the round under way was committed, and the same call goes on from there.
    """
    with nullcontext() if folder is None else owned(Path(folder), command=command):
        setting = prepare(
            experiment,
            sites=sites,
            data=data,
            partition=partition,
            sample=sample,
            crew=Crew(workers=workers, executor=executor, device=device, ray_address=ray_address),
            seed=seed,
            script=script,
            times=times,
            changes=changes or {},
            attack=attack,
            hostile=hostile,
        )
        run = _Run(setting, trackers=trackers, on_round=on_round, profile=profile or NoSpans())
        description = describe(setting, partition=partition, data=data, label=label, command=command)
        run_folder = None if folder is None else RunFolder(Path(folder), description, resume=resume)
        with seeded(setting.built.spec.plan.seed):
            return run.go(run_folder, description)


class _Run:
    """One call of `simulate`, from its setting to its result."""

    def __init__(
        self,
        setting: Setting,
        *,
        trackers: Sequence[Any],
        on_round: Callable[[RoundRecord], None] | None,
        profile: Spans,
    ) -> None:
        self._setting = setting
        self._spec = setting.built.spec
        self._trackers = Together(trackers)
        self._on_round = on_round
        self._profile = profile
        self._records: list[RoundRecord] = []
        self._best: dict[str, Array] | None = None
        self._standpoint = Standpoint()
        self._saved_at = time.monotonic()
        self._save_s = 0.0
        self._interruption = Interruption()
        self._noted = 0
        self._is_buffered = setting.algorithm.mode == "buffer"

    def go(self, folder: RunFolder | None, description: Mapping[str, Any]) -> RunResult:
        """Run, or return what the folder has if the run is over."""
        finished = _finished(folder)
        if folder is not None and finished:
            try:
                self._trackers.start(description, folder.records())
            finally:
                self._trackers.end(str(finished["outcome"]))
            return self._reread(folder, finished)
        setting, spec = self._setting, self._spec
        plan = spec.plan
        may_ask_all = self._is_buffered or type(setting.algorithm).asks_all is not Algorithm.asks_all
        is_sampled = plan.sample is not None and plan.sampler == "uniform" and not may_ask_all
        slots = min(plan.sample or 1, len(setting.shards)) if is_sampled else len(setting.shards)
        base = bytes(pack(spec.schema_.local, setting.built.arrays)) if spec.schema_.local else None
        premises = Premises(
            experiment=setting.experiment,
            spec=spec,
            base=base,
            shards=poisoned(setting.threat, setting.shards, plan.seed) if setting.threat else setting.shards,
            state=None if folder is None else folder.state,
            device=setting.device,
        )
        executor = launch(premises, Layout(spec, slots), setting.crew, source=setting.source)
        try:
            models = Models(spec, setting.algorithm, executor.arena, setting.built.arrays)
            if folder is not None:
                self._recover(folder, models)
                if report := report_of(setting.shards):
                    folder.show_partition(report)
            self._trackers.start(description, self._records)
            engine = self._engine(executor, models, folder)  # from here on the first round's seconds count
            with self._interruption:
                finish = engine.run()
            self._note(engine, folder)
            return self._end(finish, engine, models, folder)
        finally:
            executor.close()
            if folder is not None:
                folder.close()
            self._trackers.end("failed")  # those that no outcome ended

    def _engine(self, executor: Any, models: Models, folder: RunFolder | None) -> Engine:
        setting, standpoint = self._setting, self._standpoint
        engine = Engine(
            spec=self._spec,
            machine=machine_of(setting, standpoint, self._records),
            sites={name: count_examples(shard.train) for name, shard in setting.shards.items()},
            models=models,
            executor=executor,
            times=setting.times,
            script=setting.script,
            enforces_deadlines=setting.enforces_deadlines,
            clock=standpoint.clock,
            on_commit=lambda commit: self._committed(commit, engine, models, folder),
            is_stopping=self._interruption.is_set,
            profile=self._profile,
            tampering=HostileSites(setting.threat, self._spec, executor.arena) if setting.threat else None,
        )
        engine.absent = dict(standpoint.absent)
        for record in self._records:
            engine.norms = engine.norms.after(record)
        engine.book.held = {site: dict(held) for site, held in standpoint.held.items()}
        engine.resume(standpoint.under_way)
        return engine

    def _recover(self, folder: RunFolder, models: Models) -> None:
        self._standpoint, self._records = folder.recover(models)
        self._best = folder.read("best") if self._standpoint.score.best_round else None

    def _committed(
        self, commit: events.Commit, engine: Engine, models: Models, folder: RunFolder | None
    ) -> Callable[[RoundRecord], None]:
        """Take note of where the run is now; returns what writes it down, while it goes on."""
        is_saving = folder is not None and self._is_due(commit.round)
        self._standpoint = Standpoint(
            round=commit.round,
            score=commit.score,
            total=models.total,
            clock=engine.agenda.clock,
            absent=dict(engine.absent),
            held=dict(engine.book.held),
            step=models.sent_step,
            under_way=engine.under_way() if is_saving else UnderWay(),
        )
        return lambda record: self._recorded(record, engine, models, folder, is_saving=is_saving)

    def _is_due(self, number: RoundNumber) -> bool:
        since_s = time.monotonic() - self._saved_at
        is_time = number % CHECKPOINT_ROUNDS == 0 or since_s >= CHECKPOINT_S
        return (is_time and since_s >= CHECKPOINT_SHARE * self._save_s) or self._interruption.is_set()

    def _recorded(
        self, record: RoundRecord, engine: Engine, models: Models, folder: RunFolder | None, *, is_saving: bool
    ) -> None:
        self._records.append(record)
        if record.is_best:
            self._best = models.arrays()
        if folder is not None:
            folder.append(record)
            self._note(engine, folder)
            if is_saving:
                began = time.monotonic()
                folder.save(self._standpoint, models, self._best, self._spec.schema_)
                self._saved_at = time.monotonic()
                self._save_s = self._saved_at - began
        self._trackers.round(record)
        if self._on_round is not None:
            self._on_round(record)

    def _note(self, engine: Engine, folder: RunFolder | None) -> None:
        for number, site, failure in engine.failures[self._noted :]:
            if folder is not None:
                folder.note(number, site, failure)
        self._noted = len(engine.failures)

    def _end(self, finish: events.Finish | None, engine: Engine, models: Models, folder: RunFolder | None) -> RunResult:
        if finish is None:
            if folder is not None:
                self._standpoint = replace(self._standpoint, under_way=engine.under_way())
                folder.save(self._standpoint, models, self._best, self._spec.schema_)
            self._trackers.end("interrupted")
            raise KeyboardInterrupt(
                f"stopped after round {self._standpoint.round}"
                + ("; run the same command again to go on" if folder is not None else "")
            )
        arrays = models.arrays()
        outcome = {
            "outcome": finish.outcome,
            "reason": finish.reason,
            "degraded": finish.is_degraded,
            "best_round": self._standpoint.score.best_round,
        }
        if folder is not None:
            if finish.outcome == "completed" or not self._is_buffered:
                # What was under way at the last commit of an asynchronous run that failed is gone: it goes on from its
                # last checkpoint.
                folder.save(self._standpoint, models, self._best, self._spec.schema_)
            folder.finish(self._spec.schema_, arrays, self._best, outcome)
        self._trackers.end(finish.outcome)
        result = self._result(finish.outcome, finish.reason, arrays, self._best or arrays, folder)
        return replace(result, failures=tuple(engine.failures))

    def _reread(self, folder: RunFolder, description: Mapping[str, Any]) -> RunResult:
        self._records = folder.records()
        arrays, best = folder.read("model"), folder.read("best")
        if arrays is None:
            raise PlanError(f"run folder {folder.path} says it is complete but has no model; begin anew with --fresh")
        self._standpoint = Standpoint(score=events.Score(best_round=RoundNumber(int(description.get("best_round", 0)))))
        return self._result(
            str(description["outcome"]), str(description.get("reason", "")), arrays, best or arrays, folder
        )

    def _result(
        self, outcome: str, reason: str, arrays: dict[str, Array], best: dict[str, Array], folder: RunFolder | None
    ) -> RunResult:
        return RunResult(
            spec=self._spec,
            records=tuple(self._records),
            arrays=arrays,
            best={name: np.array(value) for name, value in best.items()},
            best_round=self._standpoint.score.best_round,
            outcome=outcome,
            reason=reason,
            folder=None if folder is None else folder.path,
            report=report_of(self._setting.shards),
            attack_success=self._attack_success(arrays),
        )

    def _attack_success(self, arrays: Mapping[str, Array]) -> float | None:
        setting = self._setting
        if setting.threat is None:
            return None
        return attack_success(setting.threat, setting.experiment, arrays, setting.shards)


def _finished(folder: RunFolder | None) -> dict[str, Any]:
    if folder is None:
        return {}
    description = folder.description()
    return description if description.get("outcome") == "completed" else {}
