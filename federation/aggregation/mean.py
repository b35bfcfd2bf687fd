r"""The weighted mean, as in FedAvg: Σ p_i Δ_i / Σ p_i.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, algorithm 1 with p_i = n_i. Sums run in float64 over sites in name order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.columns import fold_columns
from federation.aggregation.linear import summing, weighted_sum
from federation.aggregation.mixing import MixedTiles
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from federation.aggregation.tiles import Array, Tile, TileSource


def normalised(weights: Sequence[float]) -> list[float]:
    """Return p_i / Σ p_j.

    Raises:
        ValueError: there is none, one is negative or not finite, or all are 0.
    """
    total = math.fsum(weights)
    if not weights or not math.isfinite(total) or total <= 0 or min(weights) < 0:
        raise ValueError(f"weights must be finite, 0 or more and not all 0, got {list(weights)}")
    return [weight / total for weight in weights]


class WeightedMean(AggregationRule):
    """The weighted mean of all sites, element by element.

    Stands no hostile site: one is enough to put it anywhere.

    Formula: out = Σ p_i v_i / Σ p_i, with p_i the examples of site i (or 1, as ``weighting`` says).
    """

    name: ClassVar[str] = "mean"
    title: ClassVar[str] = "Weighted mean"
    source: ClassVar[str] = "arXiv:1602.05629, algorithm 1"
    condition: ClassVar[str] = "f = 0"

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        shares = normalised(source.weights)
        if isinstance(source, MixedTiles):
            weights = yield from weighted_sum(source, np.array(shares), context)
        else:
            yield from fold_columns(source, summing(shares), context.threads)
            weights = dict(zip(source.sites, shares, strict=True))
        return RuleReport(weights=weights, note="the weighted mean")
