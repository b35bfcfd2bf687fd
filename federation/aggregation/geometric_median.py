"""The geometric median by the smoothed Weiszfeld algorithm, computed in the span of the vectors.

Pillutla, Kakade, Harchaoui: "Robust Aggregation for Federated Learning" (RFA), IEEE TSP 2022, algorithm 2. Every
iterate is Σ a_i v_i, so its distance to each vector follows from the Gram matrix: one pass measures, one sums, and
the steps between cost n² each, whatever the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from federation.aggregation.geometry import Geometry, measure_about
from federation.aggregation.linear import weighted_sum
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.tiles import Array, Tile, TileSource


class GeometricMedian(AggregationRule):
    """The point whose distances to all vectors have the least sum.

    Stands any minority and needs no f; a vector pulls with the same force however far it is. Few passes, any model.

    Formula: m ← Σ w_i v_i / Σ w_i with w_i = 1 / max(ν s, ‖v_i - m‖), from the coordinate-wise median m₀, until ‖Δm‖ is
    at most tolerance · s; s is the median of ‖v_i - m₀‖, so that the rule does not depend on the unit of the vectors.

    Attributes:
        nu: ν, below which a distance counts as ν.
        tolerance: when to stop.
        max_steps: when to stop at the latest.
    """

    name: ClassVar[str] = "geometric_median"
    title: ClassVar[str] = "Geometric median"
    source: ClassVar[str] = "arXiv:1912.13445, algorithm 2"
    condition: ClassVar[str] = "2f < n"

    nu: float = Field(default=1e-6, ge=1e-9, le=1e3)
    tolerance: float = Field(default=1e-6, ge=1e-12, le=1)
    max_steps: int = Field(default=100, ge=1, le=100_000)

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        coefficients, steps = self.weigh(measure_about(source, None, context.threads))
        weights = yield from weighted_sum(source, coefficients, context)
        return RuleReport(weights=weights, note=f"weights by distance to the geometric median, found in {steps} steps")

    def weigh(self, geometry: Geometry) -> tuple[Array, int]:
        """Return the coefficients of the geometric median, which sum to 1, and how many steps they took.

        Everything is in units of the vectors' own scales r_i: where m - c = Σ b_i (v_i - c)/r_i, each b_i is of the
        size of the honest vectors, though v_i may be beyond any number whose square is one. A vector beyond the scales
        is first taken to be nearer on its way to c, and its coefficient is then the smaller by that.
        """
        (scales, shrinking), gram = geometry.bounded(), geometry.gram
        lengths = np.sqrt(np.diagonal(gram))
        distances = scales * lengths
        unit = float(np.median(distances))
        if unit == 0.0:
            return _shares(distances == 0.0), 0
        b = np.zeros(len(lengths))
        shares = b
        for step in range(1, self.max_steps + 1):
            weights = 1.0 / np.maximum(distances, self.nu * unit)
            shares = weights / weights.sum()
            change = shares * scales - b
            b = b + change
            square = float(b @ gram @ b)
            inside = lengths**2 - 2 * (gram @ b) / scales + square / scales / scales
            distances = scales * np.sqrt(np.maximum(inside, 0.0))
            if step > 1 and float(change @ gram @ change) <= (self.tolerance * unit) ** 2:
                break
        return shares * shrinking, step


def _shares(chosen: Array) -> Array:
    shares: Array = chosen / np.count_nonzero(chosen)
    return shares
