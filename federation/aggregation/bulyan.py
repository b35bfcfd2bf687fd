"""Bulyan: select by Krum, again and again, then average around the median of what was selected.

El Mhamdi, Guerraoui, Rouault: "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from federation.aggregation.columns import map_columns
from federation.aggregation.geometry import measure
from federation.aggregation.krum import krum_scores
from federation.aggregation.linear import only
from federation.aggregation.meamed import fill_mean_of_nearest
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.scratch import Scratch
    from federation.aggregation.tiles import Array, Tile, TileSource


class Bulyan(AggregationRule):
    """The vectors that Krum picks one after another, averaged per coordinate around their median.

    Stands f of 4f + 3 or more sites, and hostile ones that hide a large step in one coordinate, which Krum does not.

    Formula: θ times, Krum on the m vectors left, with max(1, m - f - 2) neighbours, moves its pick to the selection;
    then out[k] = mean of the θ - 2f values of the selection nearest to its median at coordinate k.

    Attributes:
        selection: θ: ``n-2f``, as in the paper, or ``n-2f-2``, as in its authors' code: every pick then has as many
            vectors to choose from as Krum's condition asks.
    """

    name: ClassVar[str] = "bulyan"
    title: ClassVar[str] = "Bulyan"
    source: ClassVar[str] = "arXiv:1802.07927, section 4"
    condition: ClassVar[str] = "4f + 3 ≤ n"
    needs_byzantine: ClassVar[bool] = True

    selection: Literal["n-2f", "n-2f-2"] = "n-2f"

    def fewest(self, byzantine: int) -> int:
        """Return 4f + 3."""
        return 4 * byzantine + 3

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        f = context.byzantine
        theta = len(source.sites) - 2 * f - (2 if self.selection == "n-2f-2" else 0)
        selected = _select(measure(source, context.threads).squared_distances(), theta, f)
        kept = theta - 2 * f

        def work(rows: Array, out: Array, scratch: Scratch) -> None:
            fill_mean_of_nearest(rows, kept, scratch, out)

        yield from map_columns(only(source, selected), work, context.threads)
        names = ", ".join(source.sites[index] for index in selected)
        return RuleReport(weights=None, note=f"per coordinate {kept} values of those selected: {names}")


def _select(squared_distances: Array, theta: int, byzantine: int) -> list[int]:
    left, selected = list(range(len(squared_distances))), []
    for _ in range(theta):
        scores = krum_scores(squared_distances[np.ix_(left, left)], max(1, len(left) - byzantine - 2))
        selected.append(left.pop(int(np.argmin(scores))))
    return sorted(selected)
