"""What every executor does: the bits of one worker alone, whatever a task draws, keeps or fails at."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import Experiment, Plan, SupervisedTask
from federation.data.shard import ArrayShard
from federation.simulation import simulate

if TYPE_CHECKING:
    from federation.simulation import RunResult

pytestmark = pytest.mark.needs_torch

EXECUTORS = ("processes", "threads")
SITES = 5
PLANS: dict[str, dict[str, Any]] = {
    "fedavg": {"algorithm": "fedavg", "local_epochs": 2},
    "scaffold": {"algorithm": "scaffold", "optimizer_state": "keep"},
    "ef21": {"algorithm": "ef21", "compression": "top_k:0.2"},
    "fedbuff": {"algorithm": "fedbuff", "options": {"k": 2}},
    "downlink": {"algorithm": "fedavg", "downlink": "natural"},
}


def points() -> ArrayShard:
    rng = np.random.default_rng(3)
    samples = rng.standard_normal((120, 8)).astype(np.float32)
    targets = (samples[:, 0] > 0).astype(np.int64)
    return ArrayShard(train=(samples, targets), validation=(samples[:20], targets[:20]))


def network() -> Any:
    import torch

    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 2)
    )


class Augmented(SupervisedTask):
    """Adds noise to what it trains on, from torch's global generator, after seeding it itself; fails at one site."""

    def train(self, model: Any, data: Any, round: Any) -> dict[str, float]:
        import torch

        if (round.site, round.number) == ("site-001", 2):
            raise RuntimeError("the scanner is off")
        torch.manual_seed(round.derive_seed("noise"))
        noisy = copy.copy(data)
        noisy.train = (data.train[0] + 0.1 * torch.randn(data.train[0].shape).numpy(), data.train[1])
        return super().train(model, noisy, round)


def run(task: Any, model: Any = network, **arguments: Any) -> RunResult:
    plan = {"rounds": 3, "sites": SITES, "quorum": 2, "learning_rate": 0.05, "seed": 7, **arguments.pop("plan", {})}
    experiment = Experiment(name="all", model=model, task=task, shard="points", data=points, plan=Plan(**plan))
    return simulate(experiment, sites=SITES, **arguments)


def same(one: RunResult, other: RunResult) -> bool:
    assert one.outcome == "completed", one.reason
    digests = [[record.model_digest for record in each.records] for each in (one, other)]
    bits = [{name: value.tobytes() for name, value in each.arrays.items()} for each in (one, other)]
    return digests[0] == digests[1] and bits[0] == bits[1]


@pytest.mark.parametrize(("executor", "workers"), [*((executor, 3) for executor in EXECUTORS), ("processes", 1)])
@pytest.mark.parametrize("name", PLANS)
def test_workers_side_by_side_give_the_bits_of_one_alone(executor: Any, workers: int, name: str) -> None:
    task = SupervisedTask(metrics=("accuracy", "gradient_norm"), batch_size=8, optimizer_options={"momentum": 0.5})
    alone = run(task, plan=PLANS[name])
    assert same(alone, run(task, plan=PLANS[name], workers=workers, executor=executor))
    assert alone.records[-1].metrics["accuracy"] > 0


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_task_that_draws_itself_and_fails_is_the_same_everywhere(executor: Any) -> None:
    alone, together = (run(Augmented(batch_size=8), **how) for how in ({}, {"workers": 2, "executor": executor}))
    assert same(alone, together)
    failed = [[(row.site, row.reason) for row in each.records[1].sites if row.reason] for each in (alone, together)]
    assert failed[0] == failed[1] == [("site-001", "RuntimeError")]
    assert all(row.peak_memory > 1e6 for each in (alone, together) for row in each.records[0].sites)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", PLANS)
def test_threads_give_the_bits_of_one_alone_on_a_gpu(name: str) -> None:
    task = SupervisedTask(metrics=("accuracy", "gradient_norm"), batch_size=8, optimizer_options={"momentum": 0.5})
    alone = run(task, plan=PLANS[name], device="cuda")
    assert same(alone, run(task, plan=PLANS[name], device="cuda", workers=3, executor="threads"))
