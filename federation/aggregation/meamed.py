"""MeaMed, the mean around the median. Xie, Koyejo, Gupta: "Generalized Byzantine-tolerant SGD", 2018."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.columns import map_columns
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport
from federation.aggregation.sorting import mean_of_nearest, sorted_rows

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.scratch import Scratch
    from federation.aggregation.tiles import Array, Tile, TileSource


class MeaMed(AggregationRule):
    """Per coordinate the mean of the n - f values nearest to the median.

    Stands f of 2f + 1 or more sites. Like the trimmed mean, but it cuts where the outliers are.

    Formula: out[k] = mean of the n - f values v_i[k] nearest to median(v_1[k], ..., v_n[k]); of two equally far the
    smaller.
    """

    name: ClassVar[str] = "meamed"
    title: ClassVar[str] = "Mean around median"
    source: ClassVar[str] = "arXiv:1802.10116, section 3.3"
    condition: ClassVar[str] = "2f < n"
    needs_byzantine: ClassVar[bool] = True

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        count = len(source.sites)
        kept = count - context.byzantine

        def work(rows: Array, out: Array, scratch: Scratch) -> None:
            fill_mean_of_nearest(rows, kept, scratch, out)

        yield from map_columns(source, work, context.threads)
        return RuleReport(weights=None, note=f"per coordinate the mean of the {kept} of {count} nearest to the median")


def fill_mean_of_nearest(rows: Array, kept: int, scratch: Scratch, out: Array) -> None:
    """Fill `out` with the mean of the `kept` values of each column nearest to its median."""
    ordered = np.stack(sorted_rows(rows, 0, len(rows) - 1, scratch), out=scratch.array("ordered", rows.shape))
    mean_of_nearest(list(ordered), kept, scratch, out)
