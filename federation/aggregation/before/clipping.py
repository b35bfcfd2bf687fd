"""Norm clipping to a radius that the plan fixes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from federation.aggregation.before.pre_aggregation import PreAggregation
from federation.aggregation.geometry import norms
from federation.aggregation.mixing import MixedTiles

if TYPE_CHECKING:
    from federation.aggregation.rule import RuleContext
    from federation.aggregation.tiles import TileSource


class Clipping(PreAggregation):
    """Vectors longer than c are scaled down to it.

    Bounds what one site can do, whatever rule follows, the mean included. Costs a pass over the norms; the right c is
    for the author of the plan to know.

    Formula: y_i = v_i · min(1, c / ‖v_i‖).

    Attributes:
        radius: c, largest L2 norm.
    """

    name: ClassVar[str] = "clipping"
    title: ClassVar[str] = "Norm clipping"
    source: ClassVar[str] = "arXiv:1911.07963, section 4"

    radius: float = Field(gt=0)

    def wrap(self, source: TileSource, context: RuleContext) -> MixedTiles:
        """Return the clipped vectors."""
        factors = norms(source, context.threads).shrinking(*math.frexp(self.radius))
        return MixedTiles(source, np.diag(factors))
