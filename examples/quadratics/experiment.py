"""Least squares with a chosen spectrum: d = 20, ten sites of 100 rows, x⁰ = all ones, in float64.

Every site trains on its own rows and evaluates on those of all, so that the federated ``gradient_square`` is ‖∇f(x)‖²
of the whole objective f, and ``loss`` is f(x). `problem_shards` gives the sites' data; `simulate` it with `run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from generator import Quadratic, make_quadratic

from federation import BestModel, Experiment, GradientTask, Plan, simulate
from federation.data import ArrayShard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from federation.simulation import RunResult

D, SITES, SAMPLES = 20, 10, 100


class LeastSquares(GradientTask):
    """f(x) = (1/n) Σ (a_lᵀx − b_l)², with its gradient (2/n) Aᵀ(Ax − b)."""

    def __init__(self, batch_size: int = SAMPLES) -> None:
        super().__init__(batch_size=batch_size, evaluation_batch_size=SITES * SAMPLES, metrics=("gradient_square",))

    def gradient(self, model: Mapping[str, np.ndarray], samples: np.ndarray, targets: np.ndarray) -> tuple[Any, Any]:
        """See `GradientTask.gradient`."""
        error = samples @ model["x"] - targets
        slope = 2 / len(targets) * (samples.T @ error)
        return {"loss": float(np.mean(error**2)), "gradient_square": float(slope @ slope)}, {"x": slope}


def model() -> dict[str, np.ndarray]:
    """Return x⁰, all ones [D]."""
    return {"x": np.ones(D)}


def site_names() -> list[str]:
    return [f"site-{number:02d}" for number in range(SITES)]


def problem_shards(problem: Quadratic) -> dict[str, ArrayShard]:
    """Return each site's rows to train on, and everybody's to evaluate on."""
    return {
        name: ArrayShard(train=(problem.features[i], problem.targets[i]), validation=problem.stacked)
        for i, name in enumerate(site_names())
    }


def make_experiment(*, batch_size: int = SAMPLES, **fields: Any) -> Experiment:
    """Return the experiment with plan fields of one's own."""
    plan = {"rounds": 100, "sites": SITES, "minimum_sites": SITES, "local_steps": 1, "weighting": "uniform", **fields}
    return Experiment(
        name="quadratics",
        model=model,
        task=LeastSquares(batch_size),
        shard="quadratics",
        metrics=("loss", "gradient_square"),
        sample_shape=(D,),
        plan=Plan(**{"best": BestModel(metric="loss", direction="min"), **plan}),
    )


def run(
    *,
    seed: int,
    smoothness: float,
    iid: bool = True,
    mu: float = 1.0,
    batch_size: int = SAMPLES,
    folder: Path | None = None,
    label: str = "",
    **fields: Any,
) -> RunResult:
    """Draw the problem of a seed and simulate it with a plan of the same seed; `fields` are the plan's."""
    problem = make_quadratic(d=D, mu=mu, smoothness=smoothness, samples=SAMPLES, sites=SITES, iid=iid, seed=seed)
    experiment = make_experiment(batch_size=batch_size, seed=seed, **fields)
    return simulate(experiment, sites=site_names(), data=problem_shards(problem), folder=folder, label=label)


experiment = make_experiment(learning_rate=0.3)
