"""One pass over a source: tiles are read in order, their columns are worked on by all cores.

1. The calling thread reads, one tile ahead, so a source need not stand several readers; workers only compute.
2. A tile's columns are cut into parts whose size depends on the number of sites alone. Parts are independent, and what
   they return is handed on in their order, so the result does not depend on the number of threads.
3. Memory is two tiles of every site, and scratch for one part in each worker.

Rows are float64 where the tile is, or the source mixes sites (`federation.aggregation.mixing`), and float32 otherwise:
half precision is widened, which is exact.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from federation.aggregation.mixing import MixedTiles
from federation.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.aggregation.tiles import Array, Tile, TileSource

T = TypeVar("T")
_PART_BYTES = 1 << 21
"""Of all rows of a part: larger ones leave the cache of a core, smaller ones are mostly calls."""
_MIN_COLUMNS, _MAX_COLUMNS = 1 << 10, 1 << 14
_AHEAD = 2
"""Tiles in memory: one that workers compute, and one that is read meanwhile or has just been handed on."""


class Scratch:
    """Arrays that a worker uses again for every part."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, str], Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
        """Return an array whose elements are whatever was left in it."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape))
        found = self._arrays.get((name, kind.str))
        if found is None or found.size < size:
            found = self._arrays[name, kind.str] = np.empty(size, dtype=kind)
        return found[:size].reshape(shape)


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_columns(
    source: TileSource, work: Callable[[Array, Array, Scratch], None], threads: int | None = None
) -> Iterator[tuple[Tile, Array]]:
    """Yield each tile with what `work` makes of its columns.

    Args:
        source: the updates.
        work: is given rows (sites, columns), which it may overwrite, one float64 row to fill, and scratch; columns
            must not depend on one another.
        threads: most threads; None: one per core.
    """
    for tile, out, _ in _sweep(source, work, threads, is_map=True):
        yield tile, out


def gather_columns(source: TileSource, work: Callable[[Array, Scratch], T], threads: int | None = None) -> Iterator[T]:
    """Yield what `work` returns for each part of the columns, in order; arguments as `map_columns`."""

    def without_output(rows: Array, _: Array, scratch: Scratch) -> T:
        return work(rows, scratch)

    for _, _, values in _sweep(source, without_output, threads, is_map=False):
        yield from values


def columns_of_part(sites: int) -> int:
    """Return how many columns a worker takes at once: a power of two that depends on the number of sites alone."""
    columns = _MAX_COLUMNS
    while columns > _MIN_COLUMNS and columns * sites * 4 > _PART_BYTES:
        columns //= 2
    return columns


def _sweep(
    source: TileSource, work: Callable[[Array, Array, Scratch], Any], threads: int | None, *, is_map: bool
) -> Iterator[tuple[Tile, Array, list[Any]]]:
    mixed = source if isinstance(source, MixedTiles) else None
    base = mixed.source if mixed is not None else source
    if not base.sites:
        raise ValueError("there is no site to aggregate")
    largest = max((tile.elements for tile in base.tiles), default=0)
    step = columns_of_part(len(base.sites))
    workers = min(threads or cores(), max(-(-largest // step) * _AHEAD, 1))
    scratches: SimpleQueue[Scratch] = SimpleQueue()
    for _ in range(workers):
        scratches.put(Scratch())

    def run(rows: Array, out: Array) -> Any:
        """Do one part of the columns, in whatever thread, with scratch memory that nobody else has meanwhile."""
        scratch = scratches.get()
        try:
            with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
                if mixed is not None:
                    place = scratch.array("mixed", (len(mixed.sites), rows.shape[1]))
                    rows = mixed.mix(rows, place, scratch.array("unmixed", rows.shape))
                return work(rows, out, scratch)
        finally:
            scratches.put(scratch)

    reader = _Reader(base, largest)
    outs = [np.empty(largest if is_map else 0) for _ in range(_AHEAD)]
    pending: deque[tuple[Tile, Array, list[Future[Any]]]] = deque()
    is_small = sum(-(-tile.elements // step) for tile in base.tiles) <= 1
    with _Here() if is_small else ThreadPoolExecutor(workers, thread_name_prefix="rule") as pool:
        for index, tile in enumerate(base.tiles):
            if len(pending) == _AHEAD:
                yield _finished(*pending.popleft())
            rows, out = reader.read(tile, index), outs[index % _AHEAD]
            out = out[: tile.elements] if is_map else out
            parts = [slice(start, start + step) for start in range(0, tile.elements, step)]
            futures = [pool.submit(run, rows[:, part], out[part] if is_map else out) for part in parts]
            pending.append((tile, out, futures))
        while pending:
            yield _finished(*pending.popleft())


class _Here:
    """Does at once what it is given, in this thread: starting one costs more than the rule of a small model."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(work(*arguments))
        return done


class _Reader:
    """Reads tiles of every site into one of `_AHEAD` matrices in turn, half precision widened."""

    def __init__(self, source: TileSource, largest: int) -> None:
        width = 8 if any(tile.dtype is DType.FLOAT64 for tile in source.tiles) else 4
        self._source = source
        self._sites = len(source.sites)
        self._memory = [np.empty(self._sites * largest * width, np.uint8) for _ in range(_AHEAD)]
        self._raw = np.empty(largest * width, np.uint8)

    def read(self, tile: Tile, index: int) -> Array:
        """Return a tile's rows, sites x elements, float32 or float64: valid until `_AHEAD` further tiles are read."""
        dtype = np.dtype(np.float64 if tile.dtype is DType.FLOAT64 else np.float32)
        memory = self._memory[index % _AHEAD][: self._sites * tile.elements * dtype.itemsize]
        rows = memory.view(dtype).reshape(self._sites, tile.elements)
        is_narrow = tile.dtype.numpy != dtype
        for site in range(self._sites):
            if is_narrow:
                own = self._raw[: tile.nbytes].view(tile.dtype.numpy)
                self._source.read(site, tile, own)
                np.copyto(rows[site], own)
            else:
                self._source.read(site, tile, rows[site])
        return rows


def _finished(tile: Tile, out: Array, futures: list[Future[Any]]) -> tuple[Tile, Array, list[Any]]:
    return tile, out, [future.result() for future in futures]
