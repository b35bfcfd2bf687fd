"""Top-K: the K coordinates largest in magnitude, as they are. Of equal ones the first is taken.

Body: u32 count per block; then per block its positions (u16, ascending) and its values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.codec import Codec, block_count, expect_bytes, read_array
from federation.compression.options import arguments_of, kept, share_or_count, text_of
from federation.compression.sparse import (
    counts_of,
    largest_positions,
    positions_bytes,
    read_counts,
    read_positions,
    taken,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Shapes, Source


@dataclass(frozen=True, slots=True)
class TopK(Codec):
    """C(x) = x on the K largest |x_j|, 0 elsewhere; biased, α = K/d: ‖C(x) − x‖² ≤ (1 − K/d)‖x‖².

    Attributes:
        q: below 1 the share K/d, from 1 on K itself.
    """

    q: float
    name: ClassVar[str] = "top_k"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> TopK:
        """Make it from ``top_k:0.01`` (share) or ``top_k:100`` (count)."""
        arguments_of("top_k:SHARE_OR_COUNT", arguments, 1, 1)
        return cls(share_or_count(arguments[0]))

    @property
    def spec(self) -> str:
        """``top_k:q``."""
        return f"top_k:{text_of(self.q)}"

    def alpha(self, elements: int) -> float:
        """Return K/d."""
        return kept(self.q, elements) / elements

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of every body: 4 · blocks + K · (2 + itemsize)."""
        return 4 * block_count(elements) + kept(self.q, elements) * (2 + itemsize)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body; nothing is drawn."""
        return sparse_body(vector, largest_positions(vector, kept(self.q, vector.size)))

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> SparseDecoder:
        """Return the decoder after checking that the counts fit the blocks and sum to K."""
        k = kept(self.q, elements)
        return SparseDecoder(self.name, body, elements, dtype, k, k)


def sparse_body(vector: Array, positions: list[Array]) -> bytes:
    """Return counts, then positions and values block after block."""
    parts = [counts_of(positions)]
    for inside, values in zip(positions, taken(vector, positions), strict=True):
        parts += [positions_bytes(inside), values.tobytes()]
    return b"".join(parts)


class SparseDecoder:
    """Puts the values of a block where its positions say; from `low` to `high` values are expected in all."""

    def __init__(self, name: str, body: Source, elements: int, dtype: np.dtype[Any], low: int, high: int) -> None:
        self._name, self._body, self._elements, self._dtype = name, body, elements, dtype
        self._counts = read_counts(name, body, elements, 0, low, high)
        table = 4 * self._counts.size
        each = 2 + dtype.itemsize
        self._starts = table + each * np.concatenate(([0], np.cumsum(self._counts)))
        expect_bytes(name, body, int(self._starts[-1]))

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        count, offset = int(self._counts[block]), int(self._starts[block])
        positions = read_positions(self._name, self._body, offset, count, self._elements, block)
        out[:] = 0
        out[positions] = read_array(self._body, offset + 2 * count, count, self._dtype)
