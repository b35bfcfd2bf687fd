"""MoNNA: the mean of the vectors nearest to one that is trusted.

Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan: "Robust Collaborative Learning with Linear Gradient Overhead",
ICML 2023, algorithm 1: there every node trusts its own vector; here a silo is named that all trust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.geometry import measure
from federation.aggregation.linear import mean_coefficients, weighted_sum
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport, SiteOption
from federation.names import SiteName

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.tiles import Array, Tile, TileSource


class Monna(AggregationRule):
    """The mean of the n - f vectors nearest to a trusted silo's, itself included.

    Stands f of 2f + 1 or more sites, if the trusted one is honest. Costs the distances.

    Formula: out = mean of the n - f vectors v_i of least ‖v_i - v_t‖, v_t first; of equal ones the first by name.

    Attributes:
        trusted: name of the site; a round without its update is not aggregated.
    """

    name: ClassVar[str] = "monna"
    title: ClassVar[str] = "MoNNA"
    source: ClassVar[str] = "arXiv:2209.10931, algorithm 1"
    condition: ClassVar[str] = "2f < n"
    needs_byzantine: ClassVar[bool] = True

    trusted: SiteOption

    @property
    def trusted_site(self) -> SiteName | None:
        """The site without which there is no round."""
        return SiteName(self.trusted)

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        count = len(source.sites)
        distances = measure(source, context.threads).squared_distances()[self.place_of_trusted(source)]
        distances[self.place_of_trusted(source)] = -1.0
        chosen = np.argsort(distances, kind="stable")[: count - context.byzantine]
        weights = yield from weighted_sum(source, mean_coefficients(count, [int(each) for each in chosen]), context)
        names = ", ".join(site for index, site in enumerate(source.sites) if index not in chosen)
        return RuleReport(
            weights=weights, note=f"outside the {len(chosen)} nearest to {self.trusted}: {names or 'none'}"
        )
