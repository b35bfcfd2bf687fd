"""Which experiments an aggregator of this release can run: asked by the director at intake, and by the aggregator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.algorithms import registry

if TYPE_CHECKING:
    from federation.plan import ExperimentSpec


def check_supported(spec: ExperimentSpec) -> None:
    """Refuse an experiment that an aggregator of this release cannot run.

    Raises:
        PlanError: says why, and what can be done.
    """
    registry.check(spec)
