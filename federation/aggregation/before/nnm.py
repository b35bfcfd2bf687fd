"""Nearest-neighbour mixing. Allouah et al.: "Fixing by Mixing", AISTATS 2023, algorithm 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.before.pre_aggregation import PreAggregation
from federation.aggregation.geometry import measure
from federation.aggregation.mixing import MixedTiles

if TYPE_CHECKING:
    from federation.aggregation.rule import RuleContext
    from federation.aggregation.tiles import TileSource


class Nnm(PreAggregation):
    """Every vector becomes the mean of its n - f nearest, itself included.

    The state of the art where honest sites' data differ: what the rule then sees is nearly alike. Costs the distances.

    Formula: y_i = mean of the n - f vectors nearest to v_i, v_i first; of equal distances the first by name.
    """

    name: ClassVar[str] = "nnm"
    title: ClassVar[str] = "Nearest-neighbour mixing"
    source: ClassVar[str] = "arXiv:2302.01772, algorithm 2"
    needs_byzantine: ClassVar[bool] = True

    def wrap(self, source: TileSource, context: RuleContext) -> MixedTiles:
        """Return the mixed vectors."""
        distances = measure(source, context.threads).squared_distances()
        np.fill_diagonal(distances, -1.0)
        count = len(source.sites)
        kept = count - context.byzantine
        mixing = np.zeros((count, count))
        for index, row in enumerate(distances):
            mixing[index, np.argsort(row, kind="stable")[:kept]] = 1.0 / kept
        return MixedTiles(source, mixing)
