"""What a site's work gives, and the checks on what a task reports.

Metrics are finite numbers under names the spec fixes. The class name of an error is all that leaves a silo by default,
so it is telling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.errors import PlanError
from federation.plan import check_metrics

if TYPE_CHECKING:
    from federation.names import PayloadName


class MetricsError(PlanError):
    """The task reported something that is no metric: a name the spec does not fix, or not a number."""


class NonFiniteMetricError(MetricsError):
    """A metric is NaN or infinite: training diverged, or the data holds what it should not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What training or evaluating gave: `examples` used, `steps` taken, `metrics`, and `seconds` the task took."""

    examples: int
    steps: int
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained(Worked):
    """What training gave.

    Attributes:
        payload_bytes: bytes that travel, by payload, in the order they were written.
        oracle_calls: examples times gradient evaluations, local steps and passes over all data alike.
        peak_memory: most memory the process that trained had resident until then, bytes; 0 if not known.
    """

    payload_bytes: dict[PayloadName, int]
    oracle_calls: int
    peak_memory: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled field by field by a dataclass, it takes longer than the pipe between two processes.
        values = (self.examples, self.steps, self.metrics, self.seconds, self.payload_bytes, self.oracle_calls)
        return _trained, (*values, self.peak_memory)


def _trained(
    examples: int,
    steps: int,
    metrics: dict[str, float],
    seconds: float,
    payload_bytes: dict[PayloadName, int],
    oracle_calls: int,
    peak_memory: int,
) -> Trained:
    return Trained(
        examples=examples,
        steps=steps,
        metrics=metrics,
        seconds=seconds,
        payload_bytes=payload_bytes,
        oracle_calls=oracle_calls,
        peak_memory=peak_memory,
    )


def checked_metrics(metrics: object, method: str, allowed: tuple[str, ...]) -> dict[str, float]:
    """Return what a task reported, as metrics.

    Args:
        metrics: whatever the task returned.
        method: method that returned it, for the text.
        allowed: names the spec fixes.

    Raises:
        MetricsError: it is no dictionary of numbers, or has a name that is not allowed.
        NonFiniteMetricError: a number is NaN or infinite.
    """
    if not isinstance(metrics, Mapping):
        raise MetricsError(f"{method} returned a {type(metrics).__name__}; expected a dictionary of metrics")
    try:
        numbers = {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise MetricsError(f"{method} returned a metric that is not a number: {error}") from error
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise NonFiniteMetricError(f"{method} returned {name} = {value}")
    try:
        return check_metrics(numbers, allowed)
    except ValueError as error:
        raise MetricsError(f"{method}: {error}") from error
