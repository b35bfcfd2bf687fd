"""The elementwise maximum, for what must not be averaged: counters, flags, masks.

A mean of integers is no integer, and int64 does not survive float64. The largest counter is one some site really
reached; a boolean is true where any site's is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.aggregation.tiles import Array, Tile, TileSource


class Maximum:
    """Elementwise maximum over the sites; weights are not used. Not an `AggregationRule`: it keeps the tile's dtype."""

    def combine(self, source: TileSource) -> Iterator[tuple[Tile, Array]]:
        """Yield each tile with its elementwise maximum, in the tile's own dtype, overwritten at the next step.

        Raises:
            ValueError: there is no site.
        """
        if not source.sites:
            raise ValueError("there is no site to take the maximum over")
        largest = max((tile.nbytes for tile in source.tiles), default=0)
        first, second = np.empty(largest, dtype=np.uint8), np.empty(largest, dtype=np.uint8)
        for tile in source.tiles:
            best = first[: tile.nbytes].view(tile.dtype.numpy)
            other = second[: tile.nbytes].view(tile.dtype.numpy)
            source.read(0, tile, best)
            for site in range(1, len(source.sites)):
                source.read(site, tile, other)
                np.maximum(best, other, out=best)
            yield tile, best
