"""Order statistics of every column of a matrix at once: a sorting network whose comparators are minima and maxima.

Batcher's odd-even merge sort (K. E. Batcher, AFIPS 1968) for any number of rows, without the comparators that the
wanted ranks do not need. A comparator works on whole rows, so the cost is that of a few hundred vectorised passes in
cache, whatever the values, and what comes out are elements that went in.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.aggregation.scratch import Scratch
    from federation.aggregation.tiles import Array


_LARGEST = float(np.finfo(np.float64).max)


@functools.lru_cache(maxsize=64)
def network(rows: int, first: int, last: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Return the comparators that put ranks `first` to `last`, included, into their places.

    Returns:
        (low, high, whether the minimum at `low` is needed, whether the maximum at `high` is), in order.
    """
    needed = set(range(first, last + 1))
    kept = []
    for low, high in reversed(_batcher(rows)):
        if low in needed or high in needed:
            kept.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(kept))


def sorted_rows(rows: Array | Sequence[Array], first: int, last: int, scratch: Scratch) -> list[Array]:
    """Return the rows of ranks `first` to `last`, included, of each column; `rows` are left as they are.

    Args:
        rows: one-dimensional, of one dtype and length, finite.
        first: lowest rank wanted, from 0.
        last: highest.
        scratch: what is returned lies there, or is a row of `rows`.
    """
    wires = list(rows)
    count, columns = len(wires), wires[0].shape[0]
    memory = scratch.array("network", (count + 2, columns), wires[0].dtype)
    free = list(memory)
    own = [False] * count
    for low, high, is_low, is_high in network(count, first, last):
        a, b = wires[low], wires[high]
        if is_low:
            wires[low] = np.minimum(a, b, out=free.pop())
        if is_high:
            wires[high] = np.maximum(a, b, out=free.pop())
        # A wire that nobody needs any more keeps its row: it is never read again.
        for place, row, was_needed in ((low, a, is_low), (high, b, is_high)):
            if own[place]:
                free.append(row)
            own[place] = was_needed
    return wires[first : last + 1]


def median_row(rows: Array | Sequence[Array], scratch: Scratch, out: Array) -> Array:
    """Fill `out`, float64, with the median of each column: of an even number of rows, the mean of the middle two."""
    count = len(rows)
    if count % 2:
        (middle,) = sorted_rows(rows, count // 2, count // 2, scratch)
        np.copyto(out, middle)
        return out
    low, high = sorted_rows(rows, count // 2 - 1, count // 2, scratch)
    return middle_of(low, high, out)


def middle_of(low: Array, high: Array, out: Array) -> Array:
    """Fill `out`, float64, with (low + high) / 2; halved first where the sum would overflow."""
    np.copyto(out, low)
    np.add(out, high, out=out)
    np.multiply(out, 0.5, out=out)
    if low.dtype == np.float64 and not np.isfinite(out).all():
        np.add(low * 0.5, high * 0.5, out=out)
    return out


def mean_of(rows: Sequence[Array], scratch: Scratch, out: Array) -> Array:
    """Fill `out`, float64, with the mean of rows, summed in their order; divided first where the sum would overflow."""
    if rows[0].dtype == np.float64:
        np.copyto(out, rows[0])
        for row in rows[1:]:
            np.add(out, row, out=out)
        np.divide(out, len(rows), out=out)
        if not np.isfinite(out).all():
            np.sum([row / len(rows) for row in rows], axis=0, out=out)
            np.clip(out, -_LARGEST, _LARGEST, out=out)  # shares may be rounded up beyond the largest number
        return out
    wide = scratch.array("wide", out.shape)
    np.copyto(out, rows[0])
    for row in rows[1:]:
        np.copyto(wide, row)
        np.add(out, wide, out=out)
    return np.divide(out, len(rows), out=out)


def mean_of_nearest(ordered: Sequence[Array], keep: int, scratch: Scratch, out: Array) -> Array:
    """Fill `out`, float64, with the mean of the `keep` values nearest to the median of each column.

    Of two that are equally far the smaller one counts. What is kept is a window of the sorted values: it moves up by
    one for each place at which the value it would lose is farther from the median than the one it would gain.

    Args:
        ordered: sorted rows, float64.
        keep: how many, 1 to all.
        scratch: for masks.
        out: overwritten.
    """
    count = len(ordered)
    median = middle_of(ordered[(count - 1) // 2], ordered[count // 2], scratch.array("median", out.shape))
    moves = [median - ordered[place] > ordered[place + keep] - median for place in range(count - keep)]
    masks = [_is_kept(place, keep, moves) for place in range(count)]
    out[...] = 0.0
    for row, mask in zip(ordered, masks, strict=True):
        np.add(out, row, out=out, where=mask)
    np.divide(out, keep, out=out)
    if not np.isfinite(out).all():
        out[...] = 0.0
        for row, mask in zip(ordered, masks, strict=True):
            np.add(out, row / keep, out=out, where=mask)
        np.clip(out, -_LARGEST, _LARGEST, out=out)
    return out


def _is_kept(place: int, keep: int, moves: Sequence[Array]) -> Array | bool:
    """Return where the value at a place is in the window: it did not move past it, and it came up to it."""
    if place < keep:
        return ~moves[place] if place < len(moves) else True
    return moves[place - keep] & ~moves[place] if place < len(moves) else moves[place - keep]


@functools.lru_cache(maxsize=64)
def _batcher(rows: int) -> tuple[tuple[int, int], ...]:
    """Return all comparators for any number of rows: those of the next power of two that touch only rows there are."""
    pairs = []
    size = 1
    while size < rows:
        step = size
        while step:
            for start in range(step % size, rows - step, 2 * step):
                for index in range(start, min(start + step, rows - step)):
                    if index // (2 * size) == (index + step) // (2 * size):
                        pairs.append((index, index + step))
            step //= 2
        size *= 2
    return tuple(pairs)
