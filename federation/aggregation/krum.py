"""Krum: the vector that lies closest to its neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer: "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, section 4. Bulyan picks by the same scores, and `federation.aggregation.multi_krum` several at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.geometry import measure
from federation.aggregation.linear import mean_coefficients, weighted_sum
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.tiles import Array, Tile, TileSource


def krum_scores(squared_distances: Array, neighbours: int) -> list[float]:
    """Return each vector's score: the sum of its squared distances to its nearest others.

    Args:
        squared_distances: float64, (n, n).
        neighbours: how many others count.
    """
    scores = []
    for index, row in enumerate(squared_distances):
        others = np.sort(np.delete(row, index))
        scores.append(math.fsum(others[:neighbours]))
    return scores


class Krum(AggregationRule):
    """The one vector whose n - f - 2 nearest others are nearest.

    Stands f of 2f + 3 or more sites. It follows a single site each round, so it needs sites whose data are alike.

    Formula: score_i = Σ ‖v_i - v_j‖² over the n - f - 2 others nearest to v_i; out = the v_i of least score, of equal
    ones the first by name.
    """

    name: ClassVar[str] = "krum"
    title: ClassVar[str] = "Krum"
    source: ClassVar[str] = "arXiv:1703.02757, section 4"
    condition: ClassVar[str] = "2f + 2 < n"
    needs_byzantine: ClassVar[bool] = True

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 3."""
        return 2 * byzantine + 3

    def _picked(self, count: int, byzantine: int) -> int:
        return 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        count = len(source.sites)
        distances = measure(source, context.threads).squared_distances()
        scores = krum_scores(distances, count - context.byzantine - 2)
        # A stable sort: of equal scores the first by name.
        best = sorted(range(count), key=scores.__getitem__)[: self._picked(count, context.byzantine)]
        weights = yield from weighted_sum(source, mean_coefficients(count, best), context)
        names = ", ".join(source.sites[index] for index in sorted(best))
        return RuleReport(weights=weights, note=f"nearest to their neighbours: {names}")
