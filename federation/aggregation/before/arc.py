"""Adaptive robust clipping. Allouah et al.: "Adaptive Gradient Clipping for Robust Federated Learning", ICLR 2025."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.before.pre_aggregation import PreAggregation
from federation.aggregation.geometry import norms
from federation.aggregation.mixing import MixedTiles

if TYPE_CHECKING:
    from federation.aggregation.rule import RuleContext
    from federation.aggregation.tiles import TileSource


class Arc(PreAggregation):
    """The k longest vectors are scaled down to the norm of the next one, so that no radius need be known.

    Costs a pass over the norms; put it before the others.

    Formula: k = ⌊2f(n - f)/n⌋; c = the (k + 1)-th largest norm; y_i = v_i · min(1, c / ‖v_i‖).
    """

    name: ClassVar[str] = "arc"
    title: ClassVar[str] = "Adaptive robust clipping"
    source: ClassVar[str] = "arXiv:2405.14432, algorithm 2"
    needs_byzantine: ClassVar[bool] = True

    def wrap(self, source: TileSource, context: RuleContext) -> MixedTiles:
        """Return the clipped vectors."""
        found = norms(source, context.threads)
        count = len(source.sites)
        clipped = 2 * context.byzantine * (count - context.byzantine) // count
        return MixedTiles(source, np.diag(found.shrinking(*found.largest(clipped))))
