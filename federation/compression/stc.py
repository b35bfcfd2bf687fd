"""Sparse ternary compression (Sattler et al., arXiv:1903.02891): the K largest, each as ± their mean magnitude.

Body: mean f32; u32 count per block; then per block its positions (u16, ascending) and a sign bit each (1: negative).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.bits import pack, unpack
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
class Stc(Codec):
    """C(x) = μ·sign(x) on the K largest |x_j|, μ their mean magnitude; biased.

    ‖C(x) − x‖² = ‖x‖² − Kμ², so α = Kμ²/‖x‖² of the vector at hand, and never below 1/d. The paper puts it, with error
    feedback, at both ends.

    Attributes:
        q: below 1 the share K/d, from 1 on K itself.
    """

    q: float
    name: ClassVar[str] = "stc"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Stc:
        """Make it from ``stc:0.01`` (share) or ``stc:100`` (count)."""
        arguments_of("stc:SHARE_OR_COUNT", arguments, 1, 1)
        return cls(share_or_count(arguments[0]))

    @property
    def spec(self) -> str:
        """``stc:q``."""
        return f"stc:{text_of(self.q)}"

    def alpha(self, elements: int) -> float:
        """Return 1/d, the worst case; vectors of even magnitudes have K/d."""
        return 1.0 / elements

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of the largest body: sign bits are padded to bytes in each block."""
        k, blocks = kept(self.q, elements), block_count(elements)
        return 4 + 4 * blocks + 2 * k + k // 8 + min(blocks, k)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body; nothing is drawn."""
        positions = largest_positions(vector, kept(self.q, vector.size))
        values = list(taken(vector, positions))
        total = math.fsum(float(np.abs(part.astype(np.float64)).sum()) for part in values)
        mean = total / sum(part.size for part in values)
        if mean > float(np.finfo(np.float32).max):
            raise ValueError(f"the mean magnitude {mean:g} is beyond float32; use top_k")
        parts = [np.float32(mean).tobytes(), counts_of(positions)]
        for inside, part in zip(positions, values, strict=True):
            parts += [positions_bytes(inside), pack((part < 0).view(np.uint8), 1)]
        return b"".join(parts)

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> StcDecoder:
        """Return the decoder after checking the mean, and that the counts fit the blocks and sum to K."""
        return StcDecoder(body, elements, kept(self.q, elements))


class StcDecoder:
    """Puts ± the mean where the positions of a block say."""

    def __init__(self, body: Source, elements: int, k: int) -> None:
        self._body, self._elements = body, elements
        self._counts = read_counts("stc", body, elements, 4, k, k)
        self._mean = read_array(body, 0, 1, "<f4")[0]
        if not 0 <= float(self._mean) < math.inf:
            raise ValueError(f"stc mean magnitude must be finite and not negative, got {self._mean}")
        sizes = 2 * self._counts + -(-self._counts // 8)
        self._starts = 4 + 4 * self._counts.size + np.concatenate(([0], np.cumsum(sizes)))
        expect_bytes("stc", body, int(self._starts[-1]))

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        count, offset = int(self._counts[block]), int(self._starts[block])
        positions = read_positions("stc", self._body, offset, count, self._elements, block)
        signs = unpack(read_array(self._body, offset + 2 * count, -(-count // 8), "u1"), 1, count)
        out[:] = 0
        out[positions] = np.where(signs, -self._mean, self._mean)
