"""CAF, the covariance-bound agnostic filter: weigh down what lies far along the direction of largest spread.

Allouah, Guerraoui, Stephan: "Towards Trustworthy Federated Learning with Untrusted Participants", ICML 2025. The top
eigenpair is that of the weighted centred Gram matrix, exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.geometry import measure
from federation.aggregation.linear import weighted_sum
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.tiles import Array, Tile, TileSource


class Caf(AggregationRule):
    """The weighted mean of least spread on a path that weighs outliers down, one direction after another.

    Stands f of 2f + 1 or more sites, and needs no bound on how far honest ones spread. Costs the distances.

    Formula: c_i = 1; while Σc > n - 2f: μ = Σc_i v_i / Σc, (λ, u) = top eigenpair of Σc_i(v_i - μ)(v_i - μ)ᵀ / Σc,
    τ_i = ⟨v_i - μ, u⟩², c_i ← c_i (1 - τ_i / max τ), the maximum over c_i > 0 alone, so that a site that weighs nothing
    stops none of the steps to come; out = the μ of least λ.
    """

    name: ClassVar[str] = "caf"
    title: ClassVar[str] = "Covariance-bound agnostic filter"
    source: ClassVar[str] = "arXiv:2505.01874, algorithm 2"
    condition: ClassVar[str] = "2f < n"
    needs_byzantine: ClassVar[bool] = True

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        products = measure(source, context.threads).products()
        coefficients = _filter(products, len(source.sites) - 2 * context.byzantine)
        weights = yield from weighted_sum(source, coefficients, context)
        return RuleReport(weights=weights, note="outliers along the directions of largest spread weighed down")


def _filter(products: Array, least: int) -> Array:
    """Return the coefficients c_i / Σc of the mean of least spread.

    Args:
        products: ⟨v_i - o, v_j - o⟩ for any origin o.
        least: n - 2f.
    """
    c = np.ones(len(products))
    best, smallest = c / len(c), math.inf
    while math.fsum(c) > least:
        p = c / math.fsum(c)
        towards = products @ p
        centred = products - towards[:, None] - towards[None, :] + float(p @ towards)
        roots = np.sqrt(p)
        values, vectors = np.linalg.eigh(roots[:, None] * centred * roots[None, :])
        spread = float(values[-1])
        if spread < smallest:
            best, smallest = p, spread
        # Up to a factor that is the same for all: |<v_i - mu, u>|, of those that still count.
        along = np.where(c > 0.0, np.abs(centred @ (roots * vectors[:, -1])), 0.0)
        farthest = float(along.max())
        if spread <= 0.0 or farthest <= 0.0:
            break
        c = c * (1.0 - (along / farthest) ** 2)
    return best
