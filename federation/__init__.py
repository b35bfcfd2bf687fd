"""Federation: train one model together without pooling the data.

Start here: `Experiment` and `Plan` say what to train, `Federation` (the client) submits it, and
``federation quickstart`` shows the whole on one machine. Names are loaded on first use, so that importing the package
costs nothing and never needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation.client.federation import Federation
    from federation.plan import BestModel, EarlyStopping, Plan
    from federation.training.experiment import Experiment
    from federation.training.supervised import SupervisedTask

__version__ = "0.1.0"

_HOMES = {
    "BestModel": "federation.plan",
    "EarlyStopping": "federation.plan",
    "Experiment": "federation.training.experiment",
    "Federation": "federation.client.federation",
    "Plan": "federation.plan",
    "SupervisedTask": "federation.training.supervised",
}

__all__ = ["BestModel", "EarlyStopping", "Experiment", "Federation", "Plan", "SupervisedTask"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'federation' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
