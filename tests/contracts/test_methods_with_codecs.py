"""Every method with every kind of codec, up and down: it is refused with advice, or it gets near the known answer.

Least squares of unlike sites whose common minimiser is known, at a step with which each method arrives uncompressed. A
codec may slow a method down or leave it at a noise floor; it may not lead it away. One codec stands for each kind:
sparse at random (large ω), sparse by size with error feedback, a norm's few levels, low rank, and light.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.algorithms.registry import BUILT_IN, check
from federation.errors import PlanError
from federation.plan import ExperimentSpec, Plan, TensorRow
from federation.tensors import DType, TensorRole

_SOURCE = Path(__file__).parents[1] / "unit" / "algorithms" / "conftest.py"
_spec = importlib.util.spec_from_file_location("algorithm_harness", _SOURCE)
assert _spec is not None
assert _spec.loader is not None
harness = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = harness  # its dataclasses look their module up
_spec.loader.exec_module(harness)

UP = ("rand_k:0.25", "top_k:0.15", "qsgd:1", "powersgd:1", "natural")
DOWN = ("rand_k:0.5", "top_k:0.25")
SHAPE, ETA, TAU, ROUNDS = (4, 5), 0.04, 3, 30
OPTIONS: dict[str, dict[str, Any]] = {
    "fedcurv": {"strength": 0.02},
    "feddyn": {"alpha": 1.0},
    "fedbuff": {"k": 3},
    "site_momentum": {"beta": 0.5},
    "stale": {"k": 3},
    "personal_fedavg": {"stage_rounds": 20, "reptile_k": 3, "reptile_rate": 0.02},
}
PLANS: dict[str, dict[str, Any]] = {
    "fedsgd": {"learning_rate": 0.12},
    "fixed_time": {"local_seconds": 1.0},
    "fedavgm": {"server_learning_rate": 0.2},
    "fedadagrad": {"server_learning_rate": 0.4},
    "fedadam": {"server_learning_rate": 0.1},
    "fedyogi": {"server_learning_rate": 0.1},
    "personal_fedavg": {"server_learning_rate": 0.2},
}
REFUSED = {
    *((name, "up", codec) for name in ("diana", "marina") for codec in ("top_k:0.15", "powersgd:1")),
    *(("feddyn", "up", codec) for codec in UP if codec != "natural"),
    *(("fedcurv", "up", codec) for codec in UP),
    *((name, "down", codec) for name in ("feddyn", "marina", "fedasync", "fedbuff", "stale") for codec in DOWN),
}  # fmt: skip


def problems() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=21)
    drawn = [(rng.normal(size=(40, 21)), truth + 0.5 * rng.normal(size=21)) for _ in range(3)]
    return [(a, a @ x + 0.1 * rng.normal(size=40)) for a, x in drawn]


PROBLEMS = problems()
BEST = harness.minimiser(PROBLEMS)


def loss_above_best(x: np.ndarray) -> float:
    """Return f(x) − f*, over that of the start."""
    f = [np.mean([np.mean((a @ y - b) ** 2) for a, b in PROBLEMS]) for y in (x, BEST, np.ones(21))]
    return float((f[0] - f[1]) / (f[2] - f[1]))


def admit(plan: Plan) -> None:
    """Ask of a plan what is asked wherever an experiment enters."""
    method = BUILT_IN[plan.algorithm](**plan.options)
    rows = [
        ("bias", (1,), TensorRole.PARAMETER),
        ("head", (1,), TensorRole.LOCAL),
        ("weight", SHAPE, TensorRole.PARAMETER),
    ]
    tensors = tuple(TensorRow(name=name, dtype=DType.FLOAT64, shape=shape, role=role) for name, shape, role in rows)
    uplink, downlink = method.payload_rows(plan)
    check(ExperimentSpec(name="try", shard="none", plan=plan, tensors=tensors, uplink=uplink, downlink=downlink))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize(
    ("way", "codec"), [*(("up", codec) for codec in ("identity", *UP)), *(("down", codec) for codec in DOWN)]
)
def test_a_method_with_a_codec_is_refused_or_gets_near_the_answer(name, way, codec):
    method = BUILT_IN[name](**OPTIONS.get(name, {}))
    plan = {
        "learning_rate": ETA,
        "rounds": ROUNDS,
        "compression" if way == "up" else "downlink": codec,
        **PLANS.get(name, {}),
    }
    federation = harness.Federation(
        method, PROBLEMS, tile=100, tau=TAU, shape=SHAPE, has_head=name in ("fedper", "fedrep"), **plan
    )
    if (name, way, codec) in REFUSED:
        with pytest.raises(PlanError, match=r"use|leave"):
            admit(federation.plan)
        return
    admit(federation.plan)
    for number in range(ROUNDS):
        federation.round([number % 3] if name == "fedasync" else None)
    assert loss_above_best(federation.x) < (0.02 if codec == "identity" else 0.3)
