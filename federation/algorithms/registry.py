"""Which methods there are, and which experiments they accept.

1. A method's server half runs in the aggregator, so it is built in or a plugin that the operator installed (entry-point
   group ``federation.algorithms``); built-in names cannot be taken. In simulation any `Algorithm` object serves.
2. `check` is asked wherever an experiment enters: when it is built, at the director, at the aggregator. It refuses what
   would be wrong, with the reason and what to do instead.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.diana import Diana
from federation.algorithms.fedavg import FedAvg
from federation.algorithms.fedprox import FedProx
from federation.algorithms.scaffold import Scaffold
from federation.errors import ConfigurationError, PlanError
from federation.tensors import DType

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from federation.plan import ExperimentSpec, Plan

ENTRY_POINT_GROUP = "federation.algorithms"

BUILT_IN: dict[str, type[Algorithm]] = {method.name: method for method in (FedAvg, FedProx, Scaffold, Diana)}
"""Every built-in method by name, in the order of the documentation."""


def algorithm_names() -> list[str]:
    """Return the names a plan may use here: ours and those of installed plugins."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})


def load_algorithm(plan: Plan, own: Algorithm | None = None) -> Algorithm:
    """Return the plan's method with the plan's options.

    Args:
        plan: names the method and its options.
        own: the experiment's own method object, where one is at hand (simulation, trainer); it serves if it has the
            plan's name.

    Raises:
        PlanError: there is no such method here, or its options are not valid.
        ConfigurationError: a plugin's entry point cannot be loaded.
    """
    name = plan.algorithm
    if name in BUILT_IN:
        return BUILT_IN[name](**plan.options)
    if own is not None and own.name == name:
        return type(own)(**plan.options)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _load_plugin(entry)(**plan.options)
    names = algorithm_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise PlanError(
        f"there is no algorithm {name[:80]!r} here, only {', '.join(names)}{hint} A method of your own runs on a "
        f"server only as a plugin its operator installed (entry point group {ENTRY_POINT_GROUP}); simulate it meanwhile"
    )


def _load_plugin(entry: EntryPoint) -> type[Algorithm]:
    try:
        method = entry.load()
    except Exception as error:
        raise ConfigurationError(f"algorithm {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error
    if not (isinstance(method, type) and issubclass(method, Algorithm)):
        raise ConfigurationError(f"algorithm {entry.name!r} ({entry.value}) is not a subclass of Algorithm")
    return method


def check(spec: ExperimentSpec, own: Algorithm | None = None) -> None:
    """Refuse an experiment whose method, options, codecs and rule do not fit together.

    Args:
        spec: the experiment.
        own: its own method object, where one is at hand.

    Raises:
        PlanError: says what does not fit and what to change.
    """
    plan = spec.plan
    algorithm = load_algorithm(plan, own)
    name = algorithm.name
    if (spec.uplink, spec.downlink) != algorithm.payload_rows(plan):
        raise PlanError(
            f"the experiment was packed for another version of algorithm {name!r}: its payload rows differ; "
            "pack it again with this release"
        )
    if algorithm.slots or algorithm.vectors or algorithm.site_state:
        for tensor in spec.schema_.parameters:
            if tensor.dtype in (DType.FLOAT16, DType.BFLOAT16):
                raise PlanError(
                    f"algorithm {name!r} keeps a vector per parameter and needs float32 or float64; "
                    f"tensor {tensor.name!r} is {tensor.dtype.value}: widen it or use fedavg"
                )
    if algorithm.only_mean and plan.rule != "mean":
        raise PlanError(
            f'algorithm {name!r} sums what sites send and cannot stand behind rule {plan.rule!r}; use rule "mean"'
        )
    if algorithm.has_own_feedback and plan.error_feedback:
        raise PlanError(f"error_feedback must be off: algorithm {name!r} carries its own")
    algorithm.check(spec)
