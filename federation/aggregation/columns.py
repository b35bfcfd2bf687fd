"""One pass over a source: pieces of its tiles are read and worked on by all cores, and handed on in order.

1. A tile is cut into pieces, whose size depends on the number of sites alone. Whoever is free takes the next one, reads
   every site's elements of it, and works on them, part by part. The calling thread is one of them
   (`federation.aggregation.crew`): there are no more threads than cores, nor than `threads_for` has memory for.
2. A fold works on all of a piece at once. A part would stay nearer to the core, but threads that make many short calls
   wait for the interpreter lock, and to be woken takes longer than such a call.
3. Pieces are independent, and what they make is handed on in their order, so the result does not depend on the number
   of threads.
4. Memory is a piece of every site and scratch in each thread, and the results of a few tiles.

Rows are float64 where the tile is, or the source mixes sites (`federation.aggregation.mixing`), and float32 otherwise:
half precision is widened, which is exact.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from federation.aggregation.crew import Crew
from federation.aggregation.mixing import MixedTiles
from federation.aggregation.scratch import Scratch
from federation.aggregation.tiles import TILE_ELEMENTS, Tile, part_of
from federation.aggregation.watching import WatchedTiles
from federation.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from federation.aggregation.tiles import Array, TileSource

T = TypeVar("T")
_PIECE_BYTES, _PART_BYTES = 1 << 23, 1 << 21
"""Of all rows of a piece that is read at once, and of a part that is worked on at once: larger ones leave the cache of
a core, smaller ones are mostly calls."""
_MIN_COLUMNS, _MAX_COLUMNS = 1 << 10, 1 << 14
_MOST_BYTES = 1 << 27  # of the memory of all threads of a pass together


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(sites: int) -> int:
    """Return how many threads a pass has where nobody says: one per core, as far as 128 MiB go; two always may be."""
    rows = 4 * sites * columns_of_piece(sites)
    return min(
        cores(), max(2, _MOST_BYTES // (3 * rows))
    )  # with scratch a thread has up to 2.7 times its rows, measured


def map_columns(
    source: TileSource, work: Callable[[Array, Array, Scratch], None], threads: int | None = None
) -> Iterator[tuple[Tile, Array]]:
    """Yield each tile with what `work` makes of its columns.

    Args:
        source: the updates.
        work: is given rows (sites, columns), which it may overwrite, one float64 row to fill, and scratch; columns
            must not depend on one another.
        threads: most threads; None: `threads_for`.
    """
    for tile, out, _ in _Pass(source, work, threads, is_map=True).run():
        yield tile, out


def fold_columns(
    source: TileSource, work: Callable[[Iterable[Array], Array, Scratch], None], threads: int | None = None
) -> Iterator[tuple[Tile, Array]]:
    """Yield each tile with what `work` makes of the sites' rows, one after the other; who watches may look.

    Args:
        source: the updates; not mixed.
        work: as for `map_columns`, but goes through the rows once, leaves them as they are, and may find each in the
            memory of the one before. What it makes is the aggregate.
        threads: most threads; None: `threads_for`.
    """
    for tile, out, _ in _Pass(source, work, threads, is_map=True, is_fold=True).run():
        yield tile, out


def gather_columns(source: TileSource, work: Callable[[Array, Scratch], T], threads: int | None = None) -> Iterator[T]:
    """Yield what `work` returns for each part of the columns, in order; arguments as `map_columns`."""

    def without_output(rows: Array, _: Array, scratch: Scratch) -> T:
        return work(rows, scratch)

    for _, _, values in _Pass(source, without_output, threads, is_map=False).run():
        yield from values


def read_rows(source: TileSource, piece: Tile, scratch: Scratch, *, room: int = 0) -> Array:
    """Return rows of a piece, sites x elements, float32 or float64, in scratch memory; half precision is widened.

    Args:
        source: the updates.
        piece: of a tile.
        scratch: holds the rows.
        room: so many rows more follow, for the caller.
    """
    dtype = np.dtype(np.float64 if piece.dtype is DType.FLOAT64 else np.float32)
    rows = scratch.array("rows", (len(source.sites) + room, piece.elements), dtype)
    own = None
    if piece.dtype.numpy != dtype:
        own = scratch.array("raw", (piece.nbytes,), np.uint8).view(piece.dtype.numpy)
    for site, row in enumerate(rows[: len(source.sites)]):
        source.read(site, piece, row if own is None else own)
        if own is not None:
            np.copyto(row, own)
    return rows


def _rows_in_turn(source: TileSource, piece: Tile, scratch: Scratch) -> Iterator[Array]:
    """Yield each site's elements of a piece, in the piece's own dtype, where a core's cache has room for no more."""
    row = scratch.array("row", (piece.nbytes,), np.uint8).view(piece.dtype.numpy)
    for site in range(len(source.sites)):
        source.read(site, piece, row)
        yield row


def columns_of_part(sites: int) -> int:
    """Return how many columns a thread works on at once: a power of two that depends on the number of sites alone."""
    return _columns(sites, _PART_BYTES, _MAX_COLUMNS)


def columns_of_piece(sites: int) -> int:
    """Return how many columns a thread reads at once: `columns_of_part`, or that by a power of two."""
    return _columns(sites, _PIECE_BYTES, TILE_ELEMENTS)


def _columns(sites: int, most_bytes: int, most: int) -> int:
    columns = most
    while columns > _MIN_COLUMNS and columns * sites * 4 > most_bytes:
        columns //= 2
    return columns


class _Pass:
    """One pass; arguments as `map_columns`.

    Args:
        is_map: there is a row to fill.
        is_fold: `work` takes one site's row after the other, of a whole piece.
    """

    def __init__(
        self,
        source: TileSource,
        work: Callable[[Any, Array, Scratch], Any],
        threads: int | None,
        *,
        is_map: bool,
        is_fold: bool = False,
    ) -> None:
        self._mixed = source if isinstance(source, MixedTiles) else None
        self._base = self._mixed.source if self._mixed is not None else source
        if not self._base.sites:
            raise ValueError("there is no site to aggregate")
        self._work = work
        self._is_map = is_map
        self._is_fold = is_fold
        self._watched = source if is_fold and isinstance(source, WatchedTiles) else None
        self._piece = columns_of_piece(len(self._base.sites))
        self._part = columns_of_part(len(self._base.sites))
        pieces = [-(-tile.elements // self._piece) for tile in self._base.tiles]
        self._threads = max(min(threads or threads_for(len(self._base.sites)), sum(pieces)), 1)
        # So many tiles that there is a piece at hand for every thread while the first tile is handed on; all are taken
        # at one, which does each when it is asked for.
        self._ahead = 1 if self._threads == 1 else 1 + -(-self._threads // max(pieces))
        self._scratches: SimpleQueue[Scratch] = SimpleQueue()
        for _ in range(self._threads):
            self._scratches.put(Scratch())

    def run(self) -> Iterator[tuple[Tile, Array, list[Any]]]:
        """Yield each tile, its row, valid until the next step, and what `work` returned for each part of it."""
        largest = max((tile.elements for tile in self._base.tiles), default=0)
        outs = [np.empty(largest if self._is_map else 0) for _ in range(self._ahead)]
        begun: deque[tuple[Tile, Array, int]] = deque()
        with Crew[tuple[list[Any], list[Any]]](self._threads, "rule") as crew:
            for index, tile in enumerate(self._base.tiles):
                if len(begun) == self._ahead:
                    yield self._finished(crew, *begun.popleft())
                out = outs[index % self._ahead][: tile.elements]
                starts = range(0, tile.elements, self._piece)
                for start in starts:
                    piece = slice(start, start + self._piece)
                    crew.begin(partial(self._do, part_of(tile, piece), out[piece]))
                begun.append((tile, out, len(starts)))
            while begun:
                yield self._finished(crew, *begun.popleft())

    def _finished(
        self, crew: Crew[tuple[list[Any], list[Any]]], tile: Tile, out: Array, pieces: int
    ) -> tuple[Tile, Array, list[Any]]:
        values: list[Any] = []
        seen: list[Any] = []
        for _ in range(pieces):
            of_piece, found = crew.take()
            values += of_piece
            seen += found
        if self._watched is not None:
            self._watched.saw(seen)
        return tile, out, values

    def _do(self, piece: Tile, out: Array) -> tuple[list[Any], list[Any]]:
        """Do one piece, in whatever thread, with scratch memory that nobody else has meanwhile."""
        scratch = self._scratches.get()
        try:
            with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
                return self._do_with(scratch, piece, out)
        finally:
            self._scratches.put(scratch)

    def _do_with(self, scratch: Scratch, piece: Tile, out: Array) -> tuple[list[Any], list[Any]]:
        if self._is_fold and self._watched is None:
            self._work(_rows_in_turn(self._base, piece, scratch), out, scratch)
            return [], []
        rows = read_rows(self._base, piece, scratch, room=0 if self._watched is None else 1)
        if self._watched is not None:
            self._work(iter(rows[:-1]), out, scratch)
            return [], [self._watched.look(rows, out, scratch)]
        parts = [slice(start, start + self._part) for start in range(0, piece.elements, self._part)]
        return [self._work(self._mix(rows[:, part], scratch), out[part], scratch) for part in parts], []

    def _mix(self, rows: Array, scratch: Scratch) -> Array:
        if self._mixed is None:
            return rows
        place = scratch.array("mixed", (len(self._mixed.sites), rows.shape[1]))
        return self._mixed.mix(rows, place, scratch.array("unmixed", rows.shape))
