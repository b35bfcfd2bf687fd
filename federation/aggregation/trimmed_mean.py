"""The coordinate-wise trimmed mean. Yin, Chen, Ramchandran, Bartlett: "Byzantine-Robust Distributed Learning", 2018."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from federation.aggregation.columns import map_columns
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport
from federation.aggregation.sorting import mean_of, sorted_rows

if TYPE_CHECKING:
    from collections.abc import Generator

    from federation.aggregation.scratch import Scratch
    from federation.aggregation.tiles import Array, Tile, TileSource


class TrimmedMean(AggregationRule):
    """Per coordinate the mean of what is left without the f smallest and the f largest values.

    Stands f of 2f + 1 or more sites. Closer to the honest mean than the median, if no more than f are hostile.

    Formula: out[k] = mean of the values of ranks f + 1 to n - f at coordinate k.
    """

    name: ClassVar[str] = "trimmed_mean"
    title: ClassVar[str] = "Coordinate-wise trimmed mean"
    source: ClassVar[str] = "arXiv:1803.01498, definition 2, with βn = f"
    condition: ClassVar[str] = "2f < n"
    needs_byzantine: ClassVar[bool] = True

    def fewest(self, byzantine: int) -> int:
        """Return 2f + 1."""
        return 2 * byzantine + 1

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        count, trimmed = len(source.sites), context.byzantine

        def work(rows: Array, out: Array, scratch: Scratch) -> None:
            mean_of(sorted_rows(rows, trimmed, count - 1 - trimmed, scratch), scratch, out)

        yield from map_columns(source, work, context.threads)
        note = f"per coordinate the mean of the middle {count - 2 * trimmed} of {count}"
        return RuleReport(weights=None, note=note)
