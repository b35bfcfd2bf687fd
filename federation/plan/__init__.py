"""What an experiment fixes, validated once, then frozen. Pure.

Start with `Plan`: what its author writes. An `ExperimentSpec` is the plan together with what packing the experiment
adds (name, shard kind, schema of the model, metrics); everybody acts on it as data.
"""

from federation.plan.plan import BestModel, EarlyStopping, OptionValue, Plan, Quarantine
from federation.plan.spec import (
    MAX_METRICS,
    ExperimentSpec,
    PayloadPlan,
    PayloadRow,
    TensorRow,
    check_metrics,
    tensor_rows,
)
from federation.plan.validation import MetricName

__all__ = [
    "MAX_METRICS",
    "BestModel",
    "EarlyStopping",
    "ExperimentSpec",
    "MetricName",
    "OptionValue",
    "PayloadPlan",
    "PayloadRow",
    "Plan",
    "Quarantine",
    "TensorRow",
    "check_metrics",
    "tensor_rows",
]
