"""One byte an element with a scale per group: rounded to the nearest, or stochastically and then unbiased.

Body, block after block: an f32 scale per group, then one signed byte an element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.bits import noise, uniforms
from federation.compression.casts import is_stochastic
from federation.compression.codec import BLOCK_ELEMENTS, Codec, block_size, blocks_of, expect_bytes, read_array
from federation.compression.natural import single
from federation.compression.options import arguments_of, whole_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Shapes, Source

_SINGLE_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Int8(Codec):
    """One byte an element, −127 to 127, times a scale per group of `group` elements: the group's largest over 127.

    Stochastic: unbiased, ω = (√(1 + (g − 1)/127²) − 1)/2 for groups of g. Nearest: biased, α = 1 − g/4·127².

    Attributes:
        group: elements that share a scale, a power of two from 8 to 65536.
        stochastic: round stochastically.
    """

    group: int
    stochastic: bool = False
    name: ClassVar[str] = "int8"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Int8:
        """Make it from ``int8:4096`` or ``int8:4096,stochastic``."""
        arguments_of("int8:GROUP[,stochastic]", arguments, 1, 2)
        group = whole_of(arguments[0], "group", 8, BLOCK_ELEMENTS)
        if group & (group - 1):
            raise ValueError(f"group must be a power of two, got {group}")
        return cls(group, is_stochastic(arguments[1:], "int8:GROUP[,stochastic]"))

    @property
    def spec(self) -> str:
        """``int8:group`` or ``int8:group,stochastic``."""
        return f"int8:{self.group}" + (",stochastic" if self.stochastic else "")

    @property
    def is_unbiased(self) -> bool:
        """True if stochastic."""
        return self.stochastic

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def omega(self, elements: int) -> float:
        """Return the bound of the class if stochastic."""
        group = min(self.group, elements)
        return (math.sqrt(1 + (group - 1) / 127**2) - 1) / 2 if self.stochastic else math.inf

    def alpha(self, elements: int) -> float:
        """Return 1/(1 + ω) if stochastic, else 1 − g/4·127² or 0."""
        if self.stochastic:
            return 1 / (1 + self.omega(elements))
        return max(0.0, 1 - min(self.group, elements) / (4 * 127**2))

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of every body: d + 4 · groups."""
        return elements + 4 * -(-elements // self.group)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body."""
        stream = noise(seed)
        parts: list[bytes] = []
        for start, end in blocks_of(vector.size):
            block = single(self.name, vector[start:end])
            groups = _padded(block, self.group)
            scales = _scales(groups)
            y = groups / np.where(scales > 0, scales, np.float32(1))[:, None]
            if self.stochastic:
                np.floor(y + uniforms(stream, y.size).reshape(y.shape), out=y)
            else:
                np.rint(y, out=y)
            codes = np.clip(y, -127, 127).astype(np.int8).reshape(-1)[: block.size]
            parts += [scales.tobytes(), codes.tobytes()]
        return b"".join(parts)

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> Int8Decoder:
        """Return the decoder."""
        expect_bytes(self.name, body, self.max_bytes(elements, dtype.itemsize, shapes))
        return Int8Decoder(body, elements, self.group)


def _padded(block: Array, group: int) -> Array:
    """Return `block` as rows of `group`, zeros at the end."""
    short = -block.size % group
    return (np.concatenate((block, np.zeros(short, block.dtype))) if short else block).reshape(-1, group)


def _scales(groups: Array) -> Array:
    """Return largest/127 of each row, float32 and rounded up, so that no ratio exceeds 127 by more than rounding."""
    largest = np.maximum(groups.max(axis=1), -groups.min(axis=1))
    exact = largest.astype(np.float64) / 127
    scales = exact.astype(np.float32)
    short = scales.astype(np.float64) < exact
    scales[short] = np.nextafter(scales[short], np.float32(np.inf))
    highest: Array = np.minimum(scales, np.float32(_SINGLE_MAX / 127.001))
    return highest


class Int8Decoder:
    """Multiplies bytes by the scales of their groups."""

    def __init__(self, body: Source, elements: int, group: int) -> None:
        self._body, self._elements, self._group = body, elements, group
        self._block_bytes = BLOCK_ELEMENTS + 4 * (BLOCK_ELEMENTS // group)

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        size = block_size(self._elements, block)
        groups = -(-size // self._group)
        raw = read_array(self._body, block * self._block_bytes, 4 * groups + size, "u1")
        scales, codes = raw[: 4 * groups].view("<f4"), raw[4 * groups :].view(np.int8)
        if not (float(scales.min()) >= 0 and float(scales.max()) <= _SINGLE_MAX / 127):
            raise ValueError(f"int8 block {block} holds a scale that is negative or not finite")
        if int(codes.min()) < -127:
            raise ValueError(f"int8 block {block} holds −128, which no encoder writes")
        rows = _padded(codes, self._group).astype(np.float32) * scales[:, None]
        out[:] = rows.reshape(-1)[:size]
