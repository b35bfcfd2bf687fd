"""Between payload files and rules: tiles read by position, results taken in pieces, runs of one role, copies."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from federation.aggregation.tiles import Array, Tile, TileSource
from federation.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from federation.names import SiteName
    from federation.storage.disk import Buffer, Readable
    from federation.tensors import TensorRole, TensorSchema


_COPIED_BYTES = 1 << 19


class ByteSink(Protocol):
    """Takes bytes in order."""

    def append(self, view: Buffer) -> None:
        """Take the next bytes.

        Raises:
            StorageError: the disk failed.
        """
        ...


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


def copy(source: Readable, sink: ByteSink) -> None:
    """Copy bytes in pieces."""
    piece = memoryview(bytearray(min(source.nbytes, _COPIED_BYTES)))
    for offset in range(0, source.nbytes, _COPIED_BYTES):
        view = piece[: source.nbytes - offset]
        source.pread_into(offset, view)
        sink.append(view)


class Places:
    """Where the bytes of a buffer lie in another one, piece by piece.

    Args:
        pieces: of each, in the order of the buffer: its first byte in the other one, and how many there are.

    Attributes:
        nbytes: of all pieces.
    """

    def __init__(self, pieces: Iterable[tuple[int, int]]) -> None:
        self.nbytes = 0
        self._starts: list[int] = []
        self._pieces: list[tuple[int, int]] = []
        for place, nbytes in pieces:
            self._starts.append(self.nbytes)
            self._pieces.append((place, nbytes))
            self.nbytes += nbytes

    def of(self, offset: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """Yield pieces of a range: first byte in the range, first byte in the other buffer, and how many."""
        end = offset + nbytes
        for index in range(max(bisect_right(self._starts, offset) - 1, 0), len(self._starts)):
            start, (place, size) = self._starts[index], self._pieces[index]
            if start >= end:
                return
            first, last = max(offset, start), min(end, start + size)
            if first < last:
                yield first - offset, place + first - start, last - first


class Scattered:
    """A buffer whose bytes lie here and there in another one. Implements `Readable`.

    Args:
        source: the other one.
        places: where in it.
        what: it is, for the error.
    """

    def __init__(self, source: Readable, places: Places, what: str) -> None:
        self.nbytes = places.nbytes
        self._source = source
        self._places = places
        self._what = what

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on.

        Raises:
            StorageError: they are not all there, or the disk failed.
        """
        target = memoryview(view).cast("B")
        if offset + target.nbytes > self.nbytes:
            raise StorageError(f"read past the {self.nbytes} bytes of {self._what}")
        for first, place, nbytes in self._places.of(offset, target.nbytes):
            self._source.pread_into(place, target[first : first + nbytes])


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

    Args:
        source: what the rule was given; its tiles are what must come out.
        results: what the rule yields.
    """

    def __init__(self, source: TileSource, results: Iterator[tuple[Tile, Array]]) -> None:
        self._expected = iter(source.tiles)
        self._results = results
        self._left: Array = np.empty(0)

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
