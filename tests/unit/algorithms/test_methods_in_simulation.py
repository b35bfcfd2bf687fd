"""Every method trains a small network through the whole stack: sites, codecs, rounds, combiner, evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from federation import Experiment, Plan, SupervisedTask, simulate
from federation.algorithms.registry import BUILT_IN
from federation.data import ArrayShard

pytestmark = pytest.mark.needs_torch

SITES = [f"site-{number}" for number in range(3)]
PLANS: dict[str, dict[str, Any]] = {
    "fedsgd": {"learning_rate": 0.5},
    "fixed_time": {"local_seconds": 0.01},
    "scaffold": {"compression": "rand_k:0.5"},
    "fedadagrad": {"server_learning_rate": 0.1},
    "fedadam": {"server_learning_rate": 0.05},
    "fedyogi": {"server_learning_rate": 0.05},
    "fedcurv": {"options": {"strength": 0.1}},
    "dcgd": {"compression": "top_k:0.2"},
    "diana": {"compression": "rand_k:0.5"},
    "marina": {"compression": "rand_k:0.5"},
    "ef21": {"compression": "top_k:0.2"},
    "fedper": {"local": ("head.*",)},
    "fedrep": {"local": ("head.*",), "options": {"head_epochs": 1}},
    "fedbn": {"local": ("norm.*",)},
    "personal_fedavg": {"options": {"stage_rounds": 3, "reptile_k": 2, "reptile_rate": 0.05}},
    "per_fedavg": {"options": {"variant": "hessian_free"}},
    "fedasync": {"options": {"alpha": 0.9, "rho": 0.01}, "rounds": 18},
    "fedbuff": {"options": {"k": 2}},
    "stale": {"quorum": 2},
}


def _shard(seed: int) -> ArrayShard:
    rng = np.random.default_rng(seed)
    classes = np.random.default_rng(99).normal(size=(16, 4))
    x = rng.normal(size=(96, 16)).astype(np.float32)
    y = (x @ classes).argmax(axis=1)
    return ArrayShard(train=(x[:64], y[:64]), validation=(x[64:], y[64:]))


def _model(*, has_norm: bool, dtype: str = "float32") -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(16, 12)
            self.norm = torch.nn.BatchNorm1d(12) if has_norm else torch.nn.Identity()
            self.head = torch.nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # The last layer's bias stays float32: a model of both dtypes.
            hidden = torch.relu(self.norm(self.body(x.to(self.body.weight.dtype))))
            result: torch.Tensor = hidden.float() @ self.head.weight.float().T + self.head.bias
            return result

    net = Net().to(getattr(torch, dtype))
    net.head.bias.data = net.head.bias.data.float()
    return net


def _run(name: str, dtype: str = "float32", **changes: Any) -> Any:
    fields = {"rounds": 6, "learning_rate": 0.1, "sites": 3, "minimum_sites": 3, "seed": 3, **PLANS.get(name, {})}
    experiment = Experiment(
        name="try",
        model=lambda: _model(has_norm=name == "fedbn", dtype=dtype),
        task=SupervisedTask(loss="cross_entropy", optimizer="sgd", batch_size=16, metrics=("accuracy",)),
        shard="try",
        metrics=("loss", "accuracy"),
        sample_shape=(16,),
        plan=Plan(algorithm=name, **{**fields, **changes}),
    )
    return simulate(experiment, sites=SITES, data={site: _shard(seed) for seed, site in enumerate(SITES)})


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_trains_a_network_and_reports_what_it_promised(name: str) -> None:
    result = _run(name)
    first, last = result.records[0].metrics, result.records[-1].metrics
    assert result.outcome == "completed"
    assert last["loss"] < first["loss"]
    assert ("personal_loss" in last) is BUILT_IN[name].personal


HALF: dict[str, dict[str, Any]] = {
    "fixed_time": {"local_steps": 4, "local_seconds": 60.0},  # as many steps in both
    "per_fedavg": {"options": {"variant": "first_order"}},
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "bfloat16") for name in BUILT_IN), *((name, "float16") for name in ("scaffold", "fedcurv", "fedadam"))],
)
def test_half_precision_trains_nearly_as_float32_does(name: str, dtype: str) -> None:
    """A model of half precision and of float32 tensors: state, vectors and master are float32, changes are rounded."""
    changes = HALF.get(name, {})
    half, full = _run(name, dtype, **changes), _run(name, **changes)
    assert half.outcome == "completed", half.reason
    got, expected = half.records[-1].metrics["loss"], full.records[-1].metrics["loss"]
    assert got == pytest.approx(expected, rel=0.02)
    weight, wide = half.arrays["body.weight"], full.arrays["body.weight"]
    assert weight.dtype.name == dtype
    assert np.linalg.norm(weight.astype(float) - wide) < 0.12 * np.linalg.norm(wide)
