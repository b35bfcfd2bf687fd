"""Rand-K: K coordinates drawn uniformly without replacement, scaled by d/K.

The encoder draws how many of the K fall into each block (the exact multivariate hypergeometric law) and sends these
counts; which coordinates of a block they are, encoder and decoder both draw from a seed, so no index travels. Within a
block all subsets of the size are equally likely, hence so are all subsets of K of the whole vector.

Body: u64 seed; u32 count per block; the K values, block after block, scaled already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.codec import Codec, block_count, block_size, blocks_of, expect_bytes, read_array
from federation.compression.options import arguments_of, kept, share_or_count, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Shapes, Source

_MAX_ELEMENTS = 10**9 - 1
"""Largest population that NumPy's hypergeometric law takes."""


@dataclass(frozen=True, slots=True)
class RandK(Codec):
    """C(x) = (d/K)·x on K uniform coordinates, 0 elsewhere; unbiased, ω = d/K − 1.

    Attributes:
        q: below 1 the share K/d, from 1 on K itself.
    """

    q: float
    name: ClassVar[str] = "rand_k"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> RandK:
        """Make it from ``rand_k:0.01`` (share) or ``rand_k:100`` (count)."""
        arguments_of("rand_k:SHARE_OR_COUNT", arguments, 1, 1)
        return cls(share_or_count(arguments[0]))

    @property
    def spec(self) -> str:
        """``rand_k:q``."""
        return f"rand_k:{text_of(self.q)}"

    @property
    def is_unbiased(self) -> bool:
        """True."""
        return True

    def omega(self, elements: int) -> float:
        """Return d/K − 1."""
        return elements / kept(self.q, elements) - 1.0

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of every body: 8 + 4 · blocks + K · itemsize."""
        return 8 + 4 * block_count(elements) + kept(self.q, elements) * itemsize

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body; `seed` travels in it."""
        elements = vector.size
        k = kept(self.q, elements)
        counts = _draw_counts(elements, k, np.random.default_rng(seed))
        scale = elements / k
        parts: list[bytes] = [np.uint64(seed).tobytes(), counts.tobytes()]
        with np.errstate(over="ignore"):
            for block, (start, end) in enumerate(blocks_of(elements)):
                positions = draw_positions(seed, block, end - start, int(counts[block]))
                values = vector[start:end][positions] * scale
                if not np.isfinite(values).all():
                    raise ValueError(
                        f"a value times {scale:g} is too large for {vector.dtype.name}; keep more elements"
                    )
                parts.append(values.tobytes())
        return b"".join(parts)

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> RandKDecoder:
        """Return the decoder after checking that the counts fit the blocks and sum to K."""
        expect_bytes(self.name, body, self.max_bytes(elements, dtype.itemsize, shapes))
        seed = int(read_array(body, 0, 1, "<u8")[0])
        counts = read_array(body, 8, block_count(elements), "<u4").astype(np.int64)
        k = kept(self.q, elements)
        sizes = [end - start for start, end in blocks_of(elements)]
        if (counts > sizes).any() or int(counts.sum()) != k:
            raise ValueError(f"rand_k counts do not fit: they must sum to {k} and no block may keep more than it has")
        return RandKDecoder(body, elements, dtype, seed, counts)


class RandKDecoder:
    """Draws the positions of a block anew and puts the values there."""

    def __init__(self, body: Source, elements: int, dtype: np.dtype[Any], seed: int, counts: Array) -> None:
        self._body, self._elements, self._dtype, self._seed = body, elements, dtype, seed
        self._counts = counts
        self._starts = np.concatenate(([0], np.cumsum(counts)))
        self._values = 8 + 4 * counts.size

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        count = int(self._counts[block])
        offset = self._values + int(self._starts[block]) * self._dtype.itemsize
        values = read_array(self._body, offset, count, self._dtype)
        out[:] = 0
        out[draw_positions(self._seed, block, block_size(self._elements, block), count)] = values


def _draw_counts(elements: int, k: int, rng: np.random.Generator) -> Array:
    """Return how many of `k` coordinates of `elements` lie in each block, u32, by the exact law."""
    if elements > _MAX_ELEMENTS:
        raise ValueError(f"rand_k takes at most {_MAX_ELEMENTS} elements of one dtype, got {elements}")
    counts = np.zeros(block_count(elements), "<u4")
    left = k
    for block, (start, end) in enumerate(blocks_of(elements)):
        beyond = elements - end
        counts[block] = rng.hypergeometric(end - start, beyond, left) if beyond and left else left
        left -= int(counts[block])
    return counts


def draw_positions(seed: int, block: int, size: int, count: int) -> Array:
    """Return `count` distinct positions below `size`, ascending: the first distinct ones of the block's raw stream.

    The stream is the 16-bit words of Philox with key `seed` and counter [0, 0, 0, block], cut to the bits `size` needs;
    words of `size` and above are passed over. Above half of the block, the positions *left out* are drawn.

    Raises:
        ValueError: the stream does not hold as many; no seed is known for which it does not.
    """
    if count > size // 2:
        chosen = np.ones(size, np.bool_)
        chosen[draw_positions(seed, block, size, size - count)] = False
        return np.flatnonzero(chosen)
    seen = np.zeros(size, np.bool_)
    if not count:
        return np.flatnonzero(seen)
    stream = np.random.Philox(key=seed, counter=[0, 0, 0, block])
    mask = np.uint16((1 << (size - 1).bit_length()) - 1)
    waiting = np.empty(0, np.uint16)
    missing, budget = count, 64 * size + 4096
    while missing:
        # At most as many words as are missing are taken at once, so the set can never grow past `count`.
        if waiting.size < missing:
            words = -(-(missing - waiting.size) // 4)
            budget -= 4 * words
            if budget < 0:
                raise ValueError(f"rand_k found no {count} distinct positions of {size}")
            fresh = stream.random_raw(words).astype("<u8", copy=False).view("<u2") & mask
            waiting = np.concatenate((waiting, fresh[fresh < size]))
        seen[waiting[:missing]] = True
        waiting = waiting[missing:]
        missing = count - int(np.count_nonzero(seen))
    return np.flatnonzero(seen)
