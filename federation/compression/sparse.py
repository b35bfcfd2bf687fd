"""What the codecs that send a few coordinates share: choosing them, and the table and positions of a body.

A body begins with a u32 count per block; a block begins with its positions, u16, ascending. What follows the positions
(values, or sign bits) is the codec's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.compression.codec import block_count, block_size, blocks_of, read_array

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.compression.codec import Array, Source


def largest_positions(vector: Array, k: int) -> list[Array]:
    """Return, block by block, the ascending positions of the `k` elements largest in magnitude; of equals the first."""
    magnitudes = np.abs(vector)
    place = vector.size - k
    magnitudes.partition(place)
    threshold = magnitudes[place]
    ties = k - int(np.count_nonzero(magnitudes[place:] > threshold))  # all larger ones lie beyond `place`
    chosen: list[Array] = []
    for start, end in blocks_of(vector.size):
        block = np.abs(vector[start:end])
        mask = block > threshold
        if ties:
            equal = np.flatnonzero(block == threshold)[:ties]
            mask[equal] = True
            ties -= equal.size
        chosen.append(np.flatnonzero(mask))
    return chosen


def above(vector: Array, threshold: float) -> list[Array]:
    """Return, block by block, the ascending positions of the elements of at least `threshold` in magnitude."""
    return [np.flatnonzero(np.abs(vector[start:end]) >= threshold) for start, end in blocks_of(vector.size)]


def taken(vector: Array, positions: list[Array]) -> Iterator[Array]:
    """Yield, block by block, the elements at `positions`."""
    for (start, end), inside in zip(blocks_of(vector.size), positions, strict=True):
        yield vector[start:end][inside]


def counts_of(positions: list[Array]) -> bytes:
    """Return the table: a u32 count per block."""
    return np.array([inside.size for inside in positions], "<u4").tobytes()


def positions_bytes(inside: Array) -> bytes:
    """Return the positions of one block, u16."""
    return inside.astype("<u2").tobytes()


def read_counts(name: str, body: Source, elements: int, offset: int, low: int, high: int) -> Array:
    """Return the table of counts, i64, once it fits.

    Raises:
        ValueError: it is cut off, a block keeps more than it has, or all together are not `low` to `high`.
    """
    blocks = block_count(elements)
    if body.nbytes < offset + 4 * blocks:
        raise ValueError(f"{name} body has {body.nbytes} bytes; its table alone takes {offset + 4 * blocks}")
    counts = read_array(body, offset, blocks, "<u4").astype(np.int64)
    sizes = np.array([end - start for start, end in blocks_of(elements)])
    total = int(counts.sum())
    if (counts > sizes).any() or not low <= total <= high:
        raise ValueError(f"{name} keeps {total} elements, from {low} to {high} are expected, or a block too many")
    return counts


def read_positions(name: str, body: Source, offset: int, count: int, elements: int, block: int) -> Array:
    """Return the positions of one block.

    Raises:
        ValueError: they do not ascend, or lie outside the block.
    """
    positions = read_array(body, offset, count, "<u2")
    if count and (int(positions[-1]) >= block_size(elements, block) or (positions[1:] <= positions[:-1]).any()):
        raise ValueError(f"{name} positions of block {block} must ascend and lie inside it")
    return positions
