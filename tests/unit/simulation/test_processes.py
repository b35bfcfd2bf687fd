"""Spawned workers, as where a system cannot fork: they load the experiment themselves, and the bits are the same."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import Experiment, Plan
from federation.data.shard import ArrayShard
from federation.errors import PlanError
from federation.simulation import processes, simulate, worker
from federation.simulation.executors import SimulationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_spawned_workers_give_the_same_bits_and_a_dead_one_is_replaced(
    source: Path,
    die_once: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    alone = simulate(source, sites=4)
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    die_once(tmp_path / "died")
    together = simulate(source, sites=4, workers=2)
    assert (tmp_path / "died").exists()
    assert [record.model_digest for record in together.records] == [record.model_digest for record in alone.records]
    assert together.arrays["w"].tobytes() == alone.arrays["w"].tobytes()
    assert capfd.readouterr().err == ""


class Lines:
    metric_names = ("loss",)

    def train(self, model: Any, data: Any, round: Any) -> dict[str, float]:
        return {"loss": 0.0}

    evaluate = train


class DiesOnce(Lines):
    """Ends its process in the second round, once."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def train(self, model: Any, data: Any, round: Any) -> dict[str, float]:
        if round.number == 2 and not self.flag.exists():
            self.flag.touch()
            os._exit(9)
        return super().train(model, data, round)


def test_more_orders_than_a_pipe_holds_are_lost_and_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ANSWER_S", 1e6)  # from the second round on whole shares are taken at once
    zeros = np.zeros((8, 2))
    shard = ArrayShard(train=(zeros, zeros[:, 0]), validation=(zeros, zeros[:, 0]))
    sites = [f"site-{number:04d}" for number in range(1500)]
    result = simulate(
        Experiment(
            name="many", model=lambda: {"w": np.zeros(2)}, task=DiesOnce(tmp_path / "died"), shard="points",
            plan=Plan(rounds=2, evaluate_every=0),
        ),
        sites=sites, data=dict.fromkeys(sites, shard), workers=1, executor="processes",
    )  # fmt: skip
    assert (tmp_path / "died").exists()
    assert [len(record.sites) for record in result.records] == [1500, 1500]


def test_an_experiment_that_cannot_be_sent_to_a_spawned_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    zeros = np.zeros((8, 2))
    shard = ArrayShard(train=(zeros, zeros[:, 0]), validation=(zeros, zeros[:, 0]))
    experiment = Experiment(name="no", model=lambda: {"w": np.zeros(2)}, task=Lines(), shard="points", plan=Plan())
    with pytest.raises(PlanError, match=r"cannot be sent to them: .*; give an experiment folder"):
        simulate(experiment, sites=2, data=shard, workers=2)


class Ends:
    """Says which process it was collected in."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.itself = self  # so that only the collector ends it

    def __del__(self) -> None:
        with self.log.open("a") as log:
            log.write(f"{os.getpid()}\n")


class Collects(Lines):
    def train(self, model: Any, data: Any, round: Any) -> dict[str, float]:
        gc.collect()
        return {"loss": float(gc.isenabled())}


@pytest.mark.skipif(processes.START_METHOD != "fork", reason="workers are no copies here")
def test_a_worker_does_not_end_what_is_its_parents(tmp_path: Path) -> None:
    """A gRPC channel that nobody held was ended in a worker, and waited for a thread of the parent for ever."""
    zeros = np.zeros((8, 2))
    shard = ArrayShard(train=(zeros, zeros[:, 0]), validation=(zeros, zeros[:, 0]))
    experiment = Experiment(
        name="tidy", model=lambda: {"w": np.zeros(2)}, task=Collects(), shard="points", plan=Plan(rounds=1)
    )
    gc.disable()
    try:
        Ends(tmp_path / "ended")
        result = simulate(experiment, sites=["north"], data={"north": shard}, workers=1, executor="processes")
        assert not (tmp_path / "ended").exists()
        assert result.records[0].train_metrics == {"loss": 1.0}, "a worker collects its own garbage"
        assert not gc.isenabled()
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "ended").read_text() == f"{os.getpid()}\n"


class Died(Lines):
    def train(self, model: Any, data: Any, round: Any) -> dict[str, float]:
        os._exit(9)


@pytest.mark.skipif(processes.START_METHOD != "fork", reason="nobody keeps to a core here")
@pytest.mark.parametrize("task", [Lines(), Died()])
def test_the_caller_has_all_its_cores_whenever_its_own_code_runs(task: Lines) -> None:
    """While answers are awaited it keeps to one; threads that were started then would keep to it for good."""
    zeros = np.zeros((8, 2))
    shard = ArrayShard(train=(zeros, zeros[:, 0]), validation=(zeros, zeros[:, 0]))
    experiment = Experiment(
        name="cores", model=lambda: {"w": np.zeros(2)}, task=task, shard="points",
        plan=Plan(rounds=3, evaluate_every=0),
    )  # fmt: skip
    before, seen = os.sched_getaffinity(0), []
    sites = ["east", "north", "south", "west"]
    try:
        simulate(
            experiment, sites=sites, data=dict.fromkeys(sites, shard), workers=max(2, len(before)),
            executor="processes", on_round=lambda _: seen.append(os.sched_getaffinity(0)),
        )  # fmt: skip
    except SimulationError:
        assert isinstance(task, Died)
    assert seen == [before] * len(seen)
    assert os.sched_getaffinity(0) == before
