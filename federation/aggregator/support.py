"""Which experiments an aggregator of this release can run: asked by the director at intake, and by the aggregator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.algorithms import registry
from federation.errors import PlanError

if TYPE_CHECKING:
    from federation.plan import ExperimentSpec


def check_supported(spec: ExperimentSpec) -> None:
    """Refuse an experiment that an aggregator of this release cannot run.

    Raises:
        PlanError: says why, and what can be done.
    """
    registry.check(spec)
    algorithm = registry.load_algorithm(spec.plan)
    if algorithm.mode == "buffer":
        raise PlanError(
            f"algorithm {algorithm.name!r} is asynchronous; this release runs it in simulation only: simulate it, or "
            "choose a method of synchronous rounds"
        )
