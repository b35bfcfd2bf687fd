"""Centred clipping: last round's aggregate, moved by what each site wants, but by no site more than τ.

Karimireddy, He, Jaggi: "Learning from History for Byzantine Robust Optimization", ICML 2021, section 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from federation.aggregation.geometry import Geometry, measure_about
from federation.aggregation.linear import weighted_sum
from federation.aggregation.mixing import KEPT, with_state
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from federation.aggregation.tiles import Array, Tile, TileSource


class CenteredClipping(AggregationRule):
    """From the aggregate of the round before, a mean step in which no site counts with more than τ.

    Stands any minority, and steady small attacks too, if sites send momentum. It needs no distances among sites: one
    pass measures those to v.

    Formula: v ← v + Σ (v_i - v) min(1, τ / ‖v_i - v‖) / n, `steps` times; out = v, which is kept for the next round;
    0 at first.

    Attributes:
        tau: τ; by default the median of ‖v_i - v‖ in the round.
        steps: how many times.
    """

    name: ClassVar[str] = "centered_clipping"
    title: ClassVar[str] = "Centred clipping"
    source: ClassVar[str] = "arXiv:2012.10333, section 4.1"
    condition: ClassVar[str] = "2f < n"

    tau: float | None = Field(default=None, gt=0)
    steps: int = Field(default=1, ge=1, le=1000)

    @property
    def state(self) -> tuple[str, ...]:
        """The aggregate of the round before."""
        return ("v",)

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        count = len(source.sites)
        extended = with_state(source, context.state.get("v"))
        kept = np.zeros(count + 1)
        kept[count] = 1.0
        moved, clipped, tau = self._move(measure_about(extended, kept, context.threads), count)
        coefficients = np.append(moved, 1.0 - moved.sum())
        weights = yield from weighted_sum(extended, coefficients, context)
        del weights[KEPT]
        return RuleReport(weights=weights, note=f"{clipped} of {count} clipped to {tau:.3g} from the last aggregate")

    def _move(self, geometry: Geometry, count: int) -> tuple[Array, int, float]:
        """Return the coefficients of v_i - v, how many were clipped in the last step, and τ."""
        # In the vectors' own scales, as for the geometric median: b_i = coefficient times r_i.
        typical = geometry.typical
        scales, shrinking = (found[:count] for found in geometry.bounded())
        gram = geometry.gram[:count, :count]
        squares = np.diagonal(gram)
        b = np.zeros(count)
        tau = None if self.tau is None else self.tau / typical
        for _ in range(self.steps):
            inside = squares - 2 * (gram @ b) / scales + float(b @ gram @ b) / scales / scales
            distances = scales * np.sqrt(np.maximum(inside, 0.0))
            if tau is None:
                tau = float(np.median(distances))
            factors = np.minimum(1.0, np.divide(tau, distances, out=np.ones(count), where=distances > 0))
            b = b * (1.0 - factors.sum() / count) + factors * scales / count
        note = float(tau or 0.0) * typical if self.tau is None else self.tau
        return b / scales * shrinking, int(np.count_nonzero(factors < 1.0)), note

    def advance(self, state: Mapping[str, Array], aggregate: Array) -> dict[str, Array]:
        """Return the aggregate as the next v."""
        return {"v": aggregate}
