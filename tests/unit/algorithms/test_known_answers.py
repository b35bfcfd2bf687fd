"""Published answers on least squares with a chosen spectrum, through `simulate`.

The problem, its start (all ones) and the order of its singular values are those of ``examples/quadratics``; ‖∇f‖² is of
the whole objective. d = 20, ten sites of 100 rows, full gradients, all sites in every round. Bounds are
those published with the answers, or one to two orders above or below them, so each can fail.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import Experiment, Plan, simulate
from federation.data import ArrayShard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from federation.simulation import RunResult

FOLDER = Path(__file__).parents[3] / "examples" / "quadratics"
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def quadratics() -> Iterator[ModuleType]:
    """Import the example as its studies do: its folder first on the path."""
    spec = importlib.util.spec_from_file_location("quadratics_experiment", FOLDER / "experiment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FOLDER))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("generator", None)


def gradient_squares(result: RunResult) -> list[float]:
    """‖∇f‖² after each round that was evaluated."""
    assert result.outcome == "completed"
    return [record.metrics["gradient_square"] for record in result.records if record.metrics]


def scaffold(quadratics: ModuleType, seed: int, **fields: Any) -> float:
    plan = {"learning_rate": 1.0, "server_learning_rate": 0.5, "rounds": 100, "evaluate_every": 100, **fields}
    return gradient_squares(quadratics.run(seed=seed, smoothness=2.0, algorithm="scaffold", **plan))[-1]


def descent(quadratics: ModuleType, seed: int, *, tau: int = 1, **fields: Any) -> list[float]:
    """L = 5, η_l = 0.15, η_g = 1/τ: the total step is the same for every τ."""
    plan = {"learning_rate": 0.15, "local_steps": tau, "server_learning_rate": 1 / tau, **fields}
    plan = {"rounds": 100, "evaluate_every": 100, **plan}
    return gradient_squares(quadratics.run(seed=seed, smoothness=5.0, **plan))


def test_the_hessian_has_the_chosen_spectrum_whatever_the_sites_hold(quadratics: ModuleType) -> None:
    for iid in (True, False):
        problem = quadratics.make_quadratic(smoothness=5.0, iid=iid, seed=4)
        assert np.linalg.eigvalsh(problem.hessian()) == pytest.approx(np.linspace(1.0, 5.0, 20))
        assert np.linalg.norm(problem.gradient(problem.minimiser())) < 1e-12
    own = [np.linalg.eigvalsh(problem.hessian(site)) for site in range(10)]
    assert min(values[0] for values in own) < 1.0 < 5.0 < max(values[-1] for values in own)


def test_the_smallest_curvature_lies_on_the_direction_that_dominates(quadratics: ModuleType) -> None:
    values, vectors = np.linalg.eigh(quadratics.make_quadratic(seed=0).hessian())
    assert abs(vectors[:, 0] @ np.ones(20)) / math.sqrt(20) > 0.99
    assert values[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("codec", "seed", "bound"),
    [("identity", 0, 1e-28), ("rand_k:0.4", 0, 1e-17), ("rand_k:0.4", 1, 1e-17), ("rand_k:0.2", 1, 1e-4)],
)
def test_scaffold_with_rand_k_reaches_what_was_published(
    quadratics: ModuleType, codec: str, seed: int, bound: float
) -> None:
    assert scaffold(quadratics, seed, compression=codec) < bound


@pytest.mark.parametrize("codec", ["top_k:0.25", "stc:0.25", "dgc:0.25"])
def test_scaffold_arrives_under_biased_codecs(quadratics: ModuleType, codec: str) -> None:
    # With error feedback on the change of c_i too, which corrects itself, all three diverge, and at any step size.
    fields = {"iid": False, "local_steps": 2, "rounds": 60, "evaluate_every": 60}
    plan = {**fields, "learning_rate": 0.05, "server_learning_rate": 1.0}
    assert scaffold(quadratics, 1, compression=codec, **plan) < 1e-3


@pytest.mark.parametrize("codec", ["top_k:0.5", "rand_k:0.5"])
def test_feddyn_arrives_under_the_strongest_codecs_it_takes(quadratics: ModuleType, codec: str) -> None:
    plan = {"learning_rate": 0.05, "local_steps": 20, "rounds": 60, "evaluate_every": 60, "options": {"alpha": 1.0}}
    result = quadratics.run(seed=1, smoothness=2.0, iid=False, algorithm="feddyn", compression=codec, **plan)
    assert gradient_squares(result)[-1] < 1e-6


@pytest.mark.parametrize(("method", "seed"), [("diana", 0), ("marina", 1)])
def test_local_steps_do_not_help_once_the_total_step_is_fixed(quadratics: ModuleType, method: str, seed: int) -> None:
    fields = {"algorithm": method, "compression": "bernoulli:0.8"}
    one, five = (descent(quadratics, seed, tau=tau, **fields)[-1] for tau in (1, 5))
    assert one < 1e-11
    assert five > 100 * one


@pytest.mark.parametrize("method", ["diana", "marina"])
def test_local_steps_stall_where_sites_differ(quadratics: ModuleType, method: str) -> None:
    reached = descent(quadratics, 0, tau=5, iid=False, algorithm=method, compression="bernoulli:0.8")[-1]
    assert 1e-4 < reached < 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_dcgd_stalls_where_sites_differ_and_diana_does_not(quadratics: ModuleType, seed: int) -> None:
    fields = {"iid": False, "compression": "bernoulli:0.8"}
    assert descent(quadratics, seed, algorithm="dcgd", **fields)[-1] > 1e-5
    halfway, last = descent(quadratics, seed, rounds=200, evaluate_every=100, algorithm="diana", **fields)
    assert halfway < 1e-11
    assert last < 1e-26


def relative(one: RunResult, other: RunResult) -> float:
    x, y = one.arrays["x"], other.arrays["x"]
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


@pytest.mark.parametrize(("method", "fields"), [
    ("fedprox", {"options": {"mu": 0.0}}), ("qfedavg", {"options": {"q": 0.0}, "learning_rate": 0.1}),
    ("fedsgd", {"local_steps": 1}), ("diana", {"local_steps": 1}), ("marina", {"local_steps": 1}),
])  # fmt: skip
def test_methods_that_come_down_to_fedavg_give_its_model(
    quadratics: ModuleType, method: str, fields: dict[str, Any]
) -> None:
    plan = {"seed": 5, "smoothness": 2.0, "iid": False, "rounds": 20, "local_steps": 3, "learning_rate": 0.1, **fields}
    average = {name: value for name, value in plan.items() if name != "options"}
    own, plain = quadratics.run(algorithm=method, **plan), quadratics.run(algorithm="fedavg", **average)
    assert relative(own, plain) < 1e-12


def test_the_method_of_ones_own_in_the_documents_runs_as_it_stands_there(quadratics: ModuleType) -> None:
    page = (FOLDER.parents[1] / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "sign_of_mean"}
    exec(page.partition("```python\n")[2].partition("```")[0], names)  # noqa: S102 - our own page
    problem = quadratics.make_quadratic(d=20, mu=1.0, smoothness=2.0, samples=100, sites=10, iid=True, seed=1)
    made = quadratics.make_experiment(learning_rate=0.05, rounds=2, server_learning_rate=0.125)
    own = Experiment(
        name="own", model=made.model, task=made.task, shard=made.shard, metrics=made.metrics, plan=made.plan,
        algorithm=names["SignOfMean"](mu=0.1),
    )  # fmt: skip
    result = simulate(own, sites=quadratics.site_names(), data=quadratics.problem_shards(problem))
    assert set(np.abs(1 - result.arrays["x"]) / 0.125) <= {0.0, 2.0}


class TakeOver:
    """Makes the model what the site holds."""

    def train(self, model: dict[str, np.ndarray], data: Any, round: Any) -> dict[str, float]:
        model["w"][...] = data.train[0].mean(axis=0)
        return self.evaluate(model, data)

    def evaluate(self, model: dict[str, np.ndarray], data: Any) -> dict[str, float]:
        return {"loss": float(np.abs(model["w"] - data.train[0].mean(axis=0)).mean())}


def test_two_sites_average_to_what_lies_between_them_and_one_alone_leaves_the_model_as_it_is() -> None:
    one = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for held, expected in (([one, one + 2], [[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]), ([one], one)):
        pairs = (np.array(held), np.zeros(len(held)))
        experiment = Experiment(
            name="average", model={"w": np.zeros((2, 3))}, task=TakeOver(), shard="none", plan=Plan(rounds=2),
            data=lambda pairs=pairs: ArrayShard(train=pairs, validation=pairs),
        )  # fmt: skip
        np.testing.assert_array_equal(simulate(experiment, sites=len(held)).arrays["w"], expected)
