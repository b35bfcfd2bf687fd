"""Federation: train one model together without pooling the data.

Start here: `Experiment` and `Plan` say what to train, `Federation` (the client) submits it, and
``federation quickstart`` shows the whole on one machine. Names are loaded on first use, so that importing the package
costs nothing and never needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation.algorithms.algorithm import Algorithm
    from federation.client.federation import Federation
    from federation.plan import BestModel, EarlyStopping, Plan, Quarantine
    from federation.simulation import simulate
    from federation.training.experiment import Experiment
    from federation.training.gradient_task import GradientTask
    from federation.training.supervised import SupervisedTask

__version__ = "0.1.0"

_HOMES = {
    "Algorithm": "federation.algorithms.algorithm",
    "BestModel": "federation.plan",
    "EarlyStopping": "federation.plan",
    "Experiment": "federation.training.experiment",
    "Federation": "federation.client.federation",
    "GradientTask": "federation.training.gradient_task",
    "Plan": "federation.plan",
    "Quarantine": "federation.plan",
    "SupervisedTask": "federation.training.supervised",
    "simulate": "federation.simulation",
}

__all__ = [
    "Algorithm",
    "BestModel",
    "EarlyStopping",
    "Experiment",
    "Federation",
    "GradientTask",
    "Plan",
    "Quarantine",
    "SupervisedTask",
    "simulate",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'federation' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
