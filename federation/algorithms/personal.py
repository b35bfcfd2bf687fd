"""What methods with a model per site share: trying other weights without losing the federation's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from federation.algorithms.client import LocalProblem


@contextmanager
def put_back(problem: LocalProblem) -> Iterator[None]:
    """Restore every trained tensor afterwards, local heads too."""
    saved = problem.trained.copy()
    try:
        yield
    finally:
        problem.trained.assign(saved)


def as_personal(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics under the names of a personal model's."""
    return {f"personal_{name}": value for name, value in metrics.items()}
