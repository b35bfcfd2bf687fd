"""A source that somebody else wants to see go by, beside the rule: each site's elements and what came of them.

A rule that goes through its tiles once, such as the mean, has every site's elements in a core's cache when it is done
with them. There they are looked at, by whichever thread has them, so that nothing is read twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.aggregation.scratch import Scratch
    from federation.aggregation.tiles import Array, TileSource


class WatchedTiles:
    """A source, watched. Implements `TileSource`; only `federation.aggregation.columns` looks.

    Args:
        source: the updates.
        look: is given rows (sites + 1, columns) of a piece of a tile, the last of which it may write to, the rule's
            result there, float64, and scratch, in any thread and order; several at once.
        saw: is given what `look` returned, in the order of the pieces, before the rule yields their tile.

    Attributes:
        look: as above.
    """

    def __init__(
        self, source: TileSource, look: Callable[[Array, Array, Scratch], Array], saw: Callable[[Array], None]
    ) -> None:
        self.sites = source.sites
        self.weights = source.weights
        self.tiles = source.tiles
        self.look = look
        self.read = source.read
        self._saw = saw
        self._seen = 0

    def saw(self, found: list[Array]) -> None:
        """Take in what was found in all pieces of the next tile."""
        for each in found:
            self._saw(each)
        self._seen += 1

    def has_seen(self, tiles: int) -> bool:
        """Tell whether so many tiles were looked at; False: the rule did with them as it liked."""
        return self._seen >= tiles
