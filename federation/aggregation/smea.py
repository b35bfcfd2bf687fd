"""SMEA, smallest maximum eigenvalue averaging: the mean of the n - f vectors that spread least in any direction.

Allouah, Guerraoui, Gupta, Pinot, Rizk: "Robust Distributed Learning: Tight Error Bounds and Breakdown Point under Data
Heterogeneity", NeurIPS 2023, section 5.1. Eigenvalues are those of the centred Gram matrix, which are exact and small.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.geometry import measure
from federation.aggregation.linear import mean_coefficients, weighted_sum
from federation.aggregation.rule import AggregationRule, NeverEnoughError, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.tiles import Array, Tile, TileSource

MOST_SUBSETS = 20_000
"""Beyond it the search takes more than a few seconds."""
_AT_ONCE = 512


class Smea(AggregationRule):
    """The mean of the n - f vectors whose covariance has the least top eigenvalue.

    Stands f of 2f + 1 or more sites, but few of them: every subset is tried, at most 20 000, and
    `sample` must say of how many. The best known bound under heterogeneity. Costs the distances.

    Formula: out = mean of the v_i in the n - f subset S of least λ_max(Σ_{i∈S} (v_i - v̄_S)(v_i - v̄_S)ᵀ / (n - f)).
    """

    name: ClassVar[str] = "smea"
    title: ClassVar[str] = "Smallest maximum eigenvalue averaging"
    source: ClassVar[str] = "arXiv:2302.04787, section 5.1"
    condition: ClassVar[str] = "2f < n"
    needs_byzantine: ClassVar[bool] = True
    is_bounded: ClassVar[bool] = True

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def check(self, vectors: int, byzantine: int) -> None:
        """Check 2f < n and that there are not too many subsets.

        Raises:
            PlanError: 2f < n does not hold.
            NeverEnoughError: the other does not.
        """
        super().check(vectors, byzantine)
        subsets = math.comb(vectors, byzantine)
        if subsets > MOST_SUBSETS:
            raise NeverEnoughError(
                f"rule 'smea' tries every subset, at most {MOST_SUBSETS}, and {byzantine} of {vectors} updates can be "
                f"left out in {subsets} ways: use caf, or sample fewer sites"
            )

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        count = len(source.sites)
        chosen = _least_spread(measure(source, context.threads).products(), count - context.byzantine)
        weights = yield from weighted_sum(source, mean_coefficients(count, chosen), context)
        names = ", ".join(site for index, site in enumerate(source.sites) if index not in chosen)
        return RuleReport(weights=weights, note=f"outside the {len(chosen)} that spread least: {names or 'none'}")


def _least_spread(products: Array, size: int) -> tuple[int, ...]:
    """Return the subset whose centred Gram matrix has the least top eigenvalue; of several the first."""
    best: tuple[int, ...] = ()
    least = math.inf
    subsets = itertools.combinations(range(len(products)), size)
    while some := list(itertools.islice(subsets, _AT_ONCE)):
        index = np.array(some)
        grams = products[index[:, :, None], index[:, None, :]]
        grams = grams - grams.mean(axis=1, keepdims=True) - grams.mean(axis=2, keepdims=True)
        grams += products[index[:, :, None], index[:, None, :]].mean(axis=(1, 2), keepdims=True)
        tops = np.linalg.eigvalsh(grams)[:, -1]
        place = int(np.argmin(tops))
        if tops[place] < least:
            least, best = float(tops[place]), some[place]
    return best
