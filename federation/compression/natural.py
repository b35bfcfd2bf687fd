"""Natural compression (Horváth et al., arXiv:1905.10988): every element rounded to a neighbouring power of two.

Nine bits of a float32 travel, sign and exponent. On the bit pattern the unbiased rounding is one addition: with r
uniform below 2^23, (bits + r) carries into the exponent with probability mantissa/2^23, which is right for subnormal
numbers too. Above 2^127 the exponent is kept, since the carry would make infinity.

Body, block after block: sign bits; u8 exponents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.bits import noise, pack, packed_bytes, unpack, words
from federation.compression.codec import BLOCK_ELEMENTS, Codec, block_size, blocks_of, expect_bytes, read_array
from federation.compression.options import arguments_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Shapes, Source


@dataclass(frozen=True, slots=True)
class Natural(Codec):
    """C(x)_j is a power of two next to x_j, unbiased; ω = 1/8 for normal float32 numbers up to 2^127."""

    name: ClassVar[str] = "natural"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Natural:
        """Make it from ``natural``, which takes no argument."""
        arguments_of("natural", arguments, 0, 0)
        return cls()

    @property
    def is_unbiased(self) -> bool:
        """True."""
        return True

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def omega(self, elements: int) -> float:
        """Return 1/8."""
        return 0.125

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of every body: 9 bits an element, signs padded to bytes."""
        return elements + packed_bytes(elements, 1)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body."""
        stream = noise(seed)
        parts: list[bytes] = []
        for start, end in blocks_of(vector.size):
            bits = single(self.name, vector[start:end]).view(np.uint32)
            carried = bits + (words(stream, bits.size) >> np.uint32(9))
            exponents = np.minimum((carried >> np.uint32(23)).astype(np.uint8), np.uint8(254))
            parts += [pack((bits >> np.uint32(31)).astype(np.uint8), 1), exponents.tobytes()]
        return b"".join(parts)

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> NaturalDecoder:
        """Return the decoder."""
        expect_bytes(self.name, body, self.max_bytes(elements, dtype.itemsize, shapes))
        return NaturalDecoder(body, elements)


class NaturalDecoder:
    """Puts sign and exponent of a block back into float32 patterns."""

    def __init__(self, body: Source, elements: int) -> None:
        self._body, self._elements = body, elements

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        size = block_size(self._elements, block)
        signs = packed_bytes(size, 1)
        raw = read_array(self._body, block * (BLOCK_ELEMENTS + BLOCK_ELEMENTS // 8), signs + size, "u1")
        exponents = raw[signs:]
        if int(exponents.max()) > 254:
            raise ValueError(f"natural block {block} holds exponent 255, which no finite number has")
        bits = exponents.astype(np.uint32) << np.uint32(23)
        bits |= unpack(raw[:signs], 1, size).astype(np.uint32) << np.uint32(31)
        out[:] = bits.view(np.float32)


def single(name: str, block: Array) -> Array:
    """Return `block` as contiguous float32.

    Raises:
        ValueError: a float64 value is beyond float32.
    """
    if block.dtype == np.float32:
        return block
    limit = float(np.finfo(np.float32).max)
    if float(block.max()) > limit or float(block.min()) < -limit:
        raise ValueError(f"{name} computes in float32, and a value is beyond {limit:g}; use rand_k or top_k")
    return block.astype(np.float32)
