"""Natural dithering (arXiv:1905.10988, section 4): dithering whose levels are powers of two, finest near zero.

Levels of u = |x_j|/‖x‖_p are 0, 2^{1−s}, …, ½, 1, and u is rounded to a neighbour without bias. Between 2^{1−s} and 1
that is natural compression of u, one addition on its bits; below, it is one coin.

Body: norm f32; signed level + s in ⌈log2(2s + 1)⌉ bits, block after block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.bits import noise, pack, packed_bytes, words
from federation.compression.codec import Codec, blocks_of, expect_bytes
from federation.compression.dithering import LevelReader, norm_of, norm_order, order_text
from federation.compression.options import arguments_of, whole_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Shapes, Source


@dataclass(frozen=True, slots=True)
class NaturalDithering(Codec):
    """C(x)_j = sign(x_j)·‖x‖_p·(a power of two from 2^{1−s} to 1, or 0); unbiased.

    ω = 1/8 + t·min(1, t) with t = d^{1/r}·2^{1−s}, r = min(p, 2).

    Attributes:
        s: levels above zero, 1 to 64.
        p: which norm, 1 to infinity.
    """

    s: int
    p: float = 2.0
    name: ClassVar[str] = "natural_dithering"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> NaturalDithering:
        """Make it from ``natural_dithering:8,2``."""
        arguments_of("natural_dithering:LEVELS,NORM", arguments, 1, 2)
        p = arguments[1] if len(arguments) > 1 else "2"
        return cls(whole_of(arguments[0], "levels", 1, 64), norm_order(p))

    @property
    def spec(self) -> str:
        """``natural_dithering:s,p``."""
        return f"natural_dithering:{self.s},{order_text(self.p)}"

    @property
    def is_unbiased(self) -> bool:
        """True."""
        return True

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    @property
    def width(self) -> int:
        """Bits of one element: ⌈log2(2s + 1)⌉."""
        return (2 * self.s).bit_length()

    def omega(self, elements: int) -> float:
        """Return the bound of the class."""
        t: float = elements ** (1 / min(self.p, 2.0)) * 2.0 ** (1 - self.s)
        return 0.125 + t * min(1.0, t)

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of every body: 4 bytes and ⌈log2(2s + 1)⌉ bits an element."""
        return 4 + packed_bytes(elements, self.width)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body."""
        norm = norm_of(vector, self.p)
        stream = noise(seed)
        parts = [np.float32(norm).tobytes()]
        for start, end in blocks_of(vector.size):
            block = vector[start:end]
            u = (block / block.dtype.type(norm or 1.0)).astype(np.float32, copy=False)
            level = self._levels(np.abs(u), words(stream, u.size))
            minus = _mask(u < 0)
            signed = np.subtract(level ^ minus, minus)  # two's complement; np.where is ten times slower
            np.add(signed, np.uint8(self.s), out=signed)
            parts.append(pack(signed, self.width))
        return b"".join(parts)

    def _levels(self, u: Array, drawn: Array) -> Array:
        """Return the level, 0 to s, of each u in [0, 1], u8."""
        carried = u.view(np.uint32) + (drawn >> np.uint32(9))
        # Modulo 256; where that matters, u lies below the levels and `lower` is taken.
        upper = (carried >> np.uint32(23)).astype(np.uint8) - np.uint8(127 - self.s)
        coin = (drawn >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
        lower = coin < u * np.float32(2.0 ** (self.s - 1))
        below = _mask(u < np.float32(2.0 ** (1 - self.s)))
        level: Array = (upper & ~below) | (lower.view(np.uint8) & below)
        return level

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> NaturalDitheringDecoder:
        """Return the decoder after checking the norm."""
        expect_bytes(self.name, body, self.max_bytes(elements, dtype.itemsize, shapes))
        return NaturalDitheringDecoder(body, elements, self.width, self.s)


def _mask(chosen: Array) -> Array:
    """Return 255 where `chosen`, else 0, u8."""
    mask: Array = -chosen.view(np.uint8)
    return mask


class NaturalDitheringDecoder:
    """Looks levels up in a table of 2s + 1 powers of two, then multiplies by the norm."""

    def __init__(self, body: Source, elements: int, width: int, s: int) -> None:
        self._levels = LevelReader(body, elements, width, 2 * s)
        powers = np.exp2(np.arange(1 - s, 1, dtype=np.float64))
        self._table = np.concatenate((-powers[::-1], [0.0], powers)).astype(np.float32)

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        out[:] = self._table[self._levels.read(block)]
        out *= self._levels.norm
