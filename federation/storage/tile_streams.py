"""Between payload files and rules: tiles read by position, results taken in pieces, runs of one role.

What a rule yields for a large model is computed a few tiles ahead in a thread of its own, while the tiles before are
added to the model, rounded, hashed and written: the same operations in the same order, on two cores instead of one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

import numpy as np

from federation.aggregation.tiles import Array, Tile, TileSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from federation.names import SiteName
    from federation.storage.disk import Readable
    from federation.tensors import TensorRole, TensorSchema


_WORTH_A_THREAD = 16
"""Tiles: below, what is computed ahead does not pay for the thread."""
_AHEAD = 3
"""Tiles that may be ready at a time: enough that neither side waits for the other's every tile."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring elements of one dtype and one role in the model's buffer."""

    role: TensorRole
    tile: Tile


def runs(schema: TensorSchema) -> Iterator[Run]:
    """Cut a buffer where dtype or role change; parameters and buffers lie between one another."""
    offset, count, last = 0, 0, None
    for spec in schema:
        if last is not None and (spec.dtype, spec.role) != (last.dtype, last.role):
            yield Run(last.role, Tile(dtype=last.dtype, offset=offset, elements=count))
            offset, count = offset + count * last.dtype.itemsize, 0
        count, last = count + spec.elements, spec
    if last is not None:
        yield Run(last.role, Tile(dtype=last.dtype, offset=offset, elements=count))


def split(tile: Tile, elements: int) -> tuple[Tile, Tile]:
    """Return the first elements of a tile and the rest."""
    size = tile.dtype.itemsize
    head = Tile(dtype=tile.dtype, offset=tile.offset, elements=elements)
    return head, Tile(dtype=tile.dtype, offset=tile.offset + elements * size, elements=tile.elements - elements)


def cut(tile: Tile, most: int) -> Iterator[Tile]:
    """Cut a tile into pieces of at most `most` elements."""
    while tile.elements:
        piece, tile = split(tile, min(most, tile.elements))
        yield piece


class PayloadTiles:
    """The same payload of every site as a `TileSource`; sites, weights and payloads in name order."""

    def __init__(
        self, sites: Sequence[SiteName], weights: Sequence[float], payloads: Sequence[Readable], tiles: tuple[Tile, ...]
    ) -> None:
        self.sites = sites
        self.weights = weights
        self.tiles = tiles
        self._payloads = payloads

    def read(self, site: int, tile: Tile, out: Array) -> None:
        """Read one site's elements of a tile."""
        self._payloads[site].pread_into(tile.offset, out.view(np.uint8).data)


class TileStream:
    """What a rule yields for a source, taken in pieces of any size.

    A context manager: on the way out no thread of its own reads the source any more.

    Args:
        source: what the rule was given; its tiles are what must come out.
        results: what the rule yields.
    """

    def __init__(self, source: TileSource, results: Iterator[tuple[Tile, Array]]) -> None:
        self._expected = iter(source.tiles)
        self._ahead = _Ahead(results) if len(source.tiles) >= _WORTH_A_THREAD else None
        self._results = self._ahead or results
        self._left: Array = np.empty(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ahead is not None:
            self._ahead.stop()

    def take(self, most: int) -> Array:
        """Return 1 to `most` next elements; valid until the next call.

        Raises:
            RuntimeError: the rule did not yield the tiles of its source in order.
        """
        if not self._left.size:
            expected = next(self._expected, None)
            tile, self._left = next(self._results, (None, self._left))
            if tile is None or tile != expected or self._left.shape != (tile.elements,):
                raise RuntimeError(f"the aggregation rule yielded {tile}, expected {expected}")
        piece, self._left = self._left[:most], self._left[most:]
        return piece

    def finish(self) -> None:
        """Let the rule come to its end, after the last piece.

        Raises:
            RuntimeError: it has more to yield.
        """
        tile = next(self._expected, None) or next((tile for tile, _ in self._results), None)
        if self._left.size or tile is not None:
            raise RuntimeError(f"the aggregation rule is not at its end: {tile or self._left.size} is left")


class _Ahead:
    """An iterator whose next items are computed in a thread, each copied: a rule overwrites what it yielded.

    The thread begins with the first item asked for; what the rule raises is raised where its item would have come.
    """

    def __init__(self, results: Iterator[tuple[Tile, Array]]) -> None:
        self._results = results
        self._ready: SimpleQueue[tuple[Tile, Array] | BaseException | None] = SimpleQueue()
        self._free: SimpleQueue[Array | None] = SimpleQueue()
        self._lent: Array | None = None
        self._thread: threading.Thread | None = None

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self) -> tuple[Tile, Array]:
        if self._thread is None:
            for _ in range(_AHEAD):
                self._free.put(np.empty(0, dtype=np.uint8))
            self._thread = threading.Thread(target=self._run, name="tiles-ahead", daemon=True)
            self._thread.start()
        if self._lent is not None:
            self._free.put(self._lent)
            self._lent = None
        item = self._ready.get()
        if item is None or isinstance(item, BaseException):
            self._ready.put(item)  # and so it stays
            raise item or StopIteration
        tile, values = item
        self._lent = values.view(np.uint8)
        return tile, values

    def stop(self) -> None:
        """Return once the thread has ended."""
        self._free.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for tile, values in self._results:
                room = self._free.get()
                if room is None:
                    break
                if room.nbytes != values.nbytes:
                    room = np.empty(values.nbytes, dtype=np.uint8)
                copy = room.view(values.dtype)
                np.copyto(copy, values)
                self._ready.put((tile, copy))
        except BaseException as error:
            end = error
        self._ready.put(end)
