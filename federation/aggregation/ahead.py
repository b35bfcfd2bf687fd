"""Tiles that another thread reads, one ahead of the rule, and may look at once more when the rule is done with them.

For a rule that goes through its tiles once, such as the mean: while it works on one tile the thread scores the one
before (`federation.storage.scoring`) and then reads the next into the same memory. So each update is read once, from
one thread, and both cores have about as much to do. Memory is two tiles of every site, and two results.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.aggregation.tiles import Array, Tile, TileSource

_MOST_BYTES = 4 << 20
"""Of a tile of all sites: more of them do not stay in cache until they are looked at again, and are memory."""


def can_read_ahead(source: TileSource) -> bool:
    """Tell whether all sites' elements of a tile are few enough to be held together."""
    return len(source.sites) * max((tile.nbytes for tile in source.tiles), default=0) <= _MOST_BYTES


class TilesAhead:
    """A source read ahead. Implements `TileSource`; leaving its context waits for its thread.

    Args:
        source: the updates; only the thread reads them once `rows` has begun.
        look: is given rows and result of each tile that was passed to `looked_at`, in order, in the thread.
    """

    def __init__(self, source: TileSource, look: Callable[[Array, Array], None]) -> None:
        self.sites = source.sites
        self.weights = source.weights
        self.tiles = source.tiles
        self._source = source
        self._look = look
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._latest: tuple[int, Array] | None = None
        self._looks: deque[Future[None]] = deque()
        largest = max((tile.elements for tile in source.tiles), default=0)
        self._results = [np.empty(largest), np.empty(largest)]

    def read(self, site: int, tile: Tile, out: Array) -> None:
        """Read one site's elements of a tile, for a rule that does not want `rows`."""
        self._source.read(site, tile, out)

    def rows(self) -> Iterator[tuple[Tile, Array]]:
        """Yield each tile with its elements, (sites, elements) of the tile's dtype, valid until the next but one."""
        nbytes = len(self.sites) * max((tile.nbytes for tile in self.tiles), default=0)
        memory = [np.empty(nbytes, np.uint8), np.empty(nbytes, np.uint8)]
        reading: Future[Array] | None = None
        for index, tile in enumerate(self.tiles):
            rows = self._read(tile, memory[0]) if reading is None else reading.result()
            if index + 1 < len(self.tiles):
                reading = self._thread.submit(self._read, self.tiles[index + 1], memory[(index + 1) % 2])
            self._latest = (index, rows)
            yield tile, rows

    def looked_at(self, result: Array) -> bool:
        """Have the thread look at the latest tile and what the rule made of it; False: the rule did not take `rows`.

        Raises:
            Exception: whatever a look before the last raised.
        """
        if self._latest is None:
            return False
        index, rows = self._latest
        if len(self._looks) == len(self._results):
            self._looks.popleft().result()  # done: the latest tile was read into its memory
        kept = self._results[index % 2][: result.size]
        np.copyto(kept, result)  # the rule overwrites it
        self._looks.append(self._thread.submit(self._look, rows, kept))
        return True

    def finish(self) -> None:
        """Wait until everything was looked at.

        Raises:
            Exception: whatever a look raised.
        """
        while self._looks:
            self._looks.popleft().result()

    def _read(self, tile: Tile, memory: Array) -> Array:
        rows: Array = memory[: len(self.sites) * tile.nbytes].view(tile.dtype.numpy).reshape(-1, tile.elements)
        for site, row in enumerate(rows):
            self._source.read(site, tile, row)
        return rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
