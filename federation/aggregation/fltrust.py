"""FLTrust: each site counts by how far it points the way of a trusted direction, and with no more than its length.

Cao, Fang, Liu, Gong: "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021, section IV.
There the server trains on data of its own; ours has none, so a silo is trusted, or the way the model has been going.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from federation.aggregation.geometric_median import GeometricMedian
from federation.aggregation.geometry import measure_about
from federation.aggregation.linear import weighted_sum
from federation.aggregation.mixing import KEPT, by_site, with_state
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport, SiteOption
from federation.names import SiteName

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from federation.aggregation.tiles import Array, Tile, TileSource

MOMENTUM = "momentum"


class FlTrust(AggregationRule):
    """The mean of all vectors, scaled to one length and weighed by their cosine with a trusted one, if it is positive.

    With a trusted silo it stands any number of hostile sites. With the server's momentum it is a heuristic without
    guarantee: a slow turn carries the reference with it.

    Formula: TS_i = max(0, cos(v_i, g₀)); out = Σ TS_i (l / ‖v_i‖) v_i / Σ TS_i, and 0 if all TS_i are. Trusted silo:
    g₀ is its vector, l = ‖g₀‖. Momentum: g₀ is the running mean of past aggregates, in the first round the geometric
    median; l is the median of ‖v_i‖.

    Attributes:
        trusted: name of the site, without whose update a round is not aggregated; or ``momentum``.
        beta: β of the momentum m ← β m + (1 - β) out.
    """

    name: ClassVar[str] = "fltrust"
    title: ClassVar[str] = "FLTrust"
    source: ClassVar[str] = "arXiv:2012.13995, section IV"
    condition: ClassVar[str] = "the trusted site is there, or 2f < n"

    trusted: SiteOption
    beta: float = Field(default=0.9, ge=0, lt=1)

    @property
    def trusted_site(self) -> SiteName | None:
        """The site without which there is no round; None with the server's momentum."""
        return None if self.trusted == MOMENTUM else SiteName(self.trusted)

    @property
    def state(self) -> tuple[str, ...]:
        """The momentum, where that is trusted."""
        return () if self.trusted_site else (MOMENTUM,)

    def fewest(self, byzantine: int) -> int:
        """Return 1 with a trusted site, else 2f + 1."""
        return 1 if self.trusted_site else 2 * byzantine + 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        count = len(source.sites)
        extended = with_state(source, context.state.get(MOMENTUM)) if self.state else source
        geometry = measure_about(extended, np.zeros(len(extended.sites)), context.threads)
        gram, unit = geometry.gram, geometry.typical
        lengths = np.sqrt(np.diagonal(gram))
        b = np.zeros(len(lengths))  # g₀ = Σ b_i v_i / r_i, but for its length where it is one vector
        if not self.state:
            place = self.place_of_trusted(source)
            b[place], unit = 1.0, float(geometry.units[place])
        elif lengths[count] > 0:
            b[count] = 1.0
        else:
            middle, _ = GeometricMedian().weigh(measure_about(source, None, context.threads))
            b[:count] = np.ldexp(middle, geometry.powers()[:count])
        scales, shrinking = (found[:count] for found in geometry.bounded(unit))
        norm = math.sqrt(max(float(b @ gram @ b), 0.0))
        along = np.divide(
            (gram @ b)[:count], lengths[:count] * norm, out=np.zeros(count), where=lengths[:count] * norm > 0
        )
        trust = np.maximum(along, 0.0)
        coefficients = np.zeros(len(lengths))
        if trust.sum() > 0:
            norms = scales * lengths[:count]
            length = float(np.median(norms)) if self.state else norm
            # No vector is made longer by more than a number can say.
            norms = np.where(norms > 0, np.maximum(norms, math.ldexp(length, -1000)), 0.0)
            shares = trust / trust.sum()
            coefficients[:count] = np.divide(shares * length, norms, out=np.zeros(count), where=norms > 0)
            coefficients[:count] *= shrinking
        weights = yield from weighted_sum(extended, coefficients, context)
        named = ", ".join(f"{site} {score:.2f}" for site, score in zip(source.sites, trust, strict=True))
        weights.pop(KEPT, None)
        return RuleReport(weights=weights, note=f"trust: {named}", trust=by_site(source, trust))

    def advance(self, state: Mapping[str, Array], aggregate: Array) -> dict[str, Array]:
        """Return the next momentum, where that is trusted."""
        return {name: self.beta * vector + (1 - self.beta) * aggregate for name, vector in state.items()}
