"""The coordinate-wise median. Yin, Chen, Ramchandran, Bartlett: "Byzantine-Robust Distributed Learning", ICML 2018."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from federation.aggregation.columns import map_columns
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport
from federation.aggregation.sorting import median_row

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.scratch import Scratch
    from federation.aggregation.tiles import Array, Tile, TileSource


class Median(AggregationRule):
    """Per coordinate the middle value; of an even number of sites the mean of the middle two.

    Stands any minority, and needs no f: each coordinate lies between values that honest sites sent. Where honest sites
    differ much it is far from their mean.

    Formula: out[k] = median(v_1[k], ..., v_n[k]).
    """

    name: ClassVar[str] = "median"
    title: ClassVar[str] = "Coordinate-wise median"
    source: ClassVar[str] = "arXiv:1803.01498, definition 1"
    condition: ClassVar[str] = "2f < n"

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        yield from map_columns(source, _median, context.threads)
        return RuleReport(weights=None, note=f"per coordinate the median of {len(source.sites)}")


def _median(rows: Array, out: Array, scratch: Scratch) -> None:
    median_row(rows, scratch, out)
