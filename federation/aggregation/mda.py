"""MDA, minimum-diameter averaging: the mean of the n - f vectors that lie closest together.

El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault: "Genuinely Distributed Byzantine Machine Learning", PODC 2020, § 3.
That subset is not found by trying all: n - f vectors of diameter d or less exist exactly if f or fewer of them
touch every pair that is farther apart, and such a cover is found in about 2^f steps, whatever n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.geometry import measure
from federation.aggregation.linear import mean_coefficients, weighted_sum
from federation.aggregation.rule import AggregationRule, NeverEnoughError, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.tiles import Array, Tile, TileSource

MOST_BYZANTINE = 12
"""Beyond it the search may take minutes."""


class Mda(AggregationRule):
    """The mean of the n - f vectors whose largest distance from one another is least.

    Stands f of 2f + 1 or more sites, f at most 12: the time grows with 2^f. Costs the distances.

    Formula: out = mean of the v_i in the n - f subset of least diameter max ‖v_i - v_j‖; of several the first by name.
    """

    name: ClassVar[str] = "mda"
    title: ClassVar[str] = "Minimum-diameter averaging"
    source: ClassVar[str] = "El Mhamdi et al., PODC 2020, section 3"
    condition: ClassVar[str] = "2f < n"
    needs_byzantine: ClassVar[bool] = True

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def check(self, vectors: int, byzantine: int) -> None:
        """Check 2f < n and f ≤ 12.

        Raises:
            PlanError: 2f < n does not hold.
            NeverEnoughError: the other does not.
        """
        super().check(vectors, byzantine)
        if byzantine > MOST_BYZANTINE:
            raise NeverEnoughError(
                f"rule 'mda' takes byzantine up to {MOST_BYZANTINE}, for its time doubles with each, and got "
                f"{byzantine}: use multi_krum with pre_aggregation nnm"
            )

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        count = len(source.sites)
        distances = measure(source, context.threads).squared_distances()
        chosen = least_diameter(distances, count - context.byzantine)
        weights = yield from weighted_sum(source, mean_coefficients(count, chosen), context)
        names = ", ".join(site for index, site in enumerate(source.sites) if index not in chosen)
        return RuleReport(weights=weights, note=f"outside the closest {len(chosen)}: {names or 'none'}")


def least_diameter(distances: Array, size: int) -> list[int]:
    """Return the subset of `size` of least diameter; of several the one that has the first, then the second, and so on.

    Args:
        distances: any monotone function of the distances, (n, n), symmetric.
        size: how many vectors.
    """
    count = len(distances)
    candidates = np.unique(distances[np.triu_indices(count, 1)]) if count > 1 else np.zeros(1)
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if _is_coverable(distances > candidates[middle], count - size):
            high = middle
        else:
            low = middle + 1
    far = distances > candidates[high]
    np.fill_diagonal(far, False)
    chosen: list[int] = []
    left = set(range(count))
    spare = count - size
    for index in range(count):
        if len(chosen) == size or index not in left:
            continue
        # Choosing this one rules out all that are far from it.
        outside = {other for other in left if far[index, other]}
        rest = sorted(left - outside)
        if len(outside) <= spare and _is_coverable(far[np.ix_(rest, rest)], spare - len(outside)):
            chosen.append(index)
            left -= outside
            spare -= len(outside)
        else:
            left.remove(index)
            spare -= 1
    return chosen


def _is_coverable(far: Array, budget: int) -> bool:
    """Tell whether `budget` or fewer vertices touch every edge of a graph."""
    if budget < 0:
        return False
    degrees = np.count_nonzero(far, axis=1)
    vertex = int(np.argmax(degrees)) if len(degrees) else 0
    if not len(degrees) or not degrees[vertex]:
        return True
    # Each vertex covers at most the largest degree of edges.
    if int(degrees.sum()) // 2 > budget * int(degrees[vertex]):
        return False
    others = np.arange(len(far)) != vertex
    if _is_coverable(far[np.ix_(others, others)], budget - 1):
        return True
    kept = others & ~far[vertex]
    return _is_coverable(far[np.ix_(kept, kept)], budget - int(degrees[vertex]))
