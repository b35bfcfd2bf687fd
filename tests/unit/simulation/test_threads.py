"""Threads as workers: nothing global to the process decides a result, and what threads cannot do is refused."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import Experiment, Plan
from federation.data.shard import ArrayShard
from federation.errors import ConfigurationError, PlanError
from federation.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_torch


def points() -> ArrayShard:
    samples = np.random.default_rng(3).standard_normal((40, 4)).astype(np.float32)
    return ArrayShard(train=(samples, samples[:, :1]), validation=(samples, samples[:, :1]))


def network() -> Any:
    import torch

    return torch.nn.Linear(4, 1)


class Task:
    """One step on all examples, after something that the test says."""

    metric_names = ("loss",)

    def __init__(self, does: Callable[[Any, Any], Any]) -> None:
        self.does = does

    def train(self, model: Any, data: Any, round: Any) -> dict[str, float]:
        import torch

        samples, targets = (torch.from_numpy(each) for each in data.train)
        output = self.does(model, samples)
        loss = torch.nn.functional.mse_loss(output, targets)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= round.learning_rate * parameter.grad
        return {"loss": float(loss.detach())}

    def evaluate(self, model: Any, data: Any) -> dict[str, float]:
        return {"loss": 0.0}


def run(does: Callable[[Any, Any], Any], *, model: Any = network, **arguments: Any) -> Any:
    plan = Plan(rounds=2, sites=4, learning_rate=0.1)
    experiment = Experiment(name="t", model=model, task=Task(does), shard="points", data=points, plan=plan)
    return simulate(experiment, sites=4, **{"workers": 2, "executor": "threads", **arguments})


def dropped(model: Any, samples: Any) -> Any:
    import torch

    return model(torch.nn.functional.dropout(samples, 0.5))


def test_what_a_task_draws_is_as_alone_and_the_caller_keeps_its_own_place() -> None:
    import torch

    places = (random.getstate(), torch.get_rng_state().tolist(), torch.manual_seed, torch.get_num_threads())
    together = run(dropped)
    assert places == (random.getstate(), torch.get_rng_state().tolist(), torch.manual_seed, torch.get_num_threads())
    alone = run(dropped, workers=1, executor="serial")
    assert [record.model_digest for record in together.records] == [record.model_digest for record in alone.records]


def test_a_task_that_never_draws_is_the_same_too() -> None:
    together, alone = (run(lambda model, samples: model(samples), workers=count, executor=None) for count in (2, 1))
    threads = run(lambda model, samples: model(samples))
    assert threads.arrays["weight"].tobytes() == together.arrays["weight"].tobytes() == alone.arrays["weight"].tobytes()


def draws_from_numpy(model: Any, samples: Any) -> Any:
    return model(samples * np.random.uniform())


def draws_from_python(model: Any, samples: Any) -> Any:
    return model(samples * random.random())  # noqa: S311 - what an author might do


def sets_a_state(model: Any, samples: Any) -> Any:
    import torch

    try:
        torch.set_rng_state(torch.get_rng_state())
    except ConfigurationError:
        pass  # an author who catches everything
    return model(samples)


def computes_twice(model: Any, samples: Any) -> Any:
    import torch
    from torch.utils.checkpoint import checkpoint

    samples = samples.clone().requires_grad_()
    return checkpoint(
        lambda x: model(torch.nn.functional.dropout(x, 0.5)), samples, use_reentrant=False, preserve_rng_state=False
    )


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (draws_from_numpy, "draws from, or seeds, NumPy's global generator"),
        (draws_from_python, "draws from, or seeds, Python's global generator"),
        (sets_a_state, "calls torch's set_rng_state"),
        (computes_twice, "draws random numbers while gradients flow back"),
    ],
)
def test_what_threads_cannot_do_side_by_side_is_refused(does: Callable[[Any, Any], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{says}.*use --executor processes"):
        run(does)


def test_a_model_that_is_made_once_cannot_serve_several_threads() -> None:
    made = network()
    with pytest.raises(PlanError, match="the same tensors at each call"):
        run(lambda model, samples: model(samples), model=lambda: made)
