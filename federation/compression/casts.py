"""Narrower floats: float16 and bfloat16, to the nearest or stochastically. With scales: `federation.compression.int8`.

Rounding to the nearest is biased and goes with error feedback; with ``stochastic`` a value goes up with probability
equal to how far up it lies, which is unbiased. Bodies are 2 bytes an element.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.bits import noise, short_words, uniforms
from federation.compression.codec import BLOCK_ELEMENTS, Codec, block_size, blocks_of, expect_bytes, read_array
from federation.compression.natural import single
from federation.compression.options import arguments_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Buffer, Shapes, Source

_HALF_MAX = 65504.0
_HALF_NORMAL = np.float32(2.0**-14).view(np.uint32)
_HALF_MAX_BITS = np.float32(_HALF_MAX).view(np.uint32)
_HALF_BIAS = np.uint32((127 - 15) << 10)
"""Float32's exponent less float16's, at float16's place."""
_BRAIN_MAX = np.uint32(0x7F7F)
_TOO_LARGE = f"a value is beyond float16's {_HALF_MAX:g}; use bfloat16 or int8:4096"


def is_stochastic(arguments: Sequence[str], form: str) -> bool:
    """Read the one optional argument ``stochastic``.

    Raises:
        ValueError: it is something else.
    """
    if not arguments:
        return False
    if arguments[0] != "stochastic":
        raise ValueError(f"got {arguments[0]!r}; write it as {form}")
    return True


@dataclass(frozen=True, slots=True)
class Half(Codec):
    """IEEE half precision; values beyond ±65504 are refused.

    Stochastic: unbiased, ω = 2^-22 for elements of at least 2^-14; smaller ones lie on a grid of 2^-24 and have a
    variance of at most 2^-50 each. Nearest: ‖C(x) − x‖ ≤ ‖x‖ and, for elements of at least 2^-14, ≤ 2^-11‖x‖; α is 0
    since no bound below 1 holds for tiny vectors.

    Attributes:
        stochastic: round stochastically.
    """

    stochastic: bool = False
    name: ClassVar[str] = "float16"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Half:
        """Make it from ``float16`` or ``float16:stochastic``."""
        arguments_of("float16[:stochastic]", arguments, 0, 1)
        return cls(is_stochastic(arguments, "float16[:stochastic]"))

    @property
    def spec(self) -> str:
        """``float16`` or ``float16:stochastic``."""
        return "float16:stochastic" if self.stochastic else "float16"

    @property
    def is_unbiased(self) -> bool:
        """True if stochastic."""
        return self.stochastic

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def omega(self, elements: int) -> float:
        """Return 2^-22 if stochastic."""
        return 2.0**-22 if self.stochastic else math.inf

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return 2 · d."""
        return 2 * elements

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> Buffer:
        """Return the body."""
        if not self.stochastic and vector.dtype != np.float32:  # rounded once
            if max(abs(float(vector.min())), abs(float(vector.max()))) > _HALF_MAX:
                raise ValueError(_TOO_LARGE)
            return vector.astype("<f2").view(np.uint8).data
        stream = noise(seed) if self.stochastic else None
        body, magnitude = np.empty(vector.size, "<u2"), np.empty(BLOCK_ELEMENTS, np.uint32)
        for start, end in blocks_of(vector.size):
            block = single(self.name, vector[start:end])
            body[start:end] = _half(block, stream, magnitude[: block.size])
        return body.view(np.uint8).data

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> CastDecoder:
        """Return the decoder."""
        expect_bytes(self.name, body, 2 * elements)
        return CastDecoder(body, elements, brain=False)


def _half(x: Array, stream: np.random.SFC64 | None, magnitude: Array) -> Array:
    """Return the bits of float32 `x` as float16, to the nearest (None) or stochastically; `magnitude` is overwritten.

    In whole numbers, and in arrays that stay in the cache: NumPy's own conversion takes longer than all of this, and of
    numbers below 2^-14, as changes of a model often are, twenty times as long.

    Raises:
        ValueError: a value is beyond the largest float16.
    """
    bits = x.view(np.uint32)
    np.bitwise_and(bits, np.uint32(0x7FFFFFFF), out=magnitude)
    if magnitude.max() > _HALF_MAX_BITS:
        raise ValueError(_TOO_LARGE)
    small = np.flatnonzero(magnitude < _HALF_NORMAL)
    steps = magnitude[small].view(np.float32) * np.float32(2.0**24)  # of a subnormal number
    if stream is None:
        half = magnitude >> np.uint32(13)
        half &= np.uint32(1)  # ties to even
        half += np.uint32(0xFFF)
        np.rint(steps, out=steps)
    else:
        half = short_words(stream, x.size, 13)
        steps += uniforms(stream, small.size)
        np.floor(steps, out=steps)
    half += magnitude  # a carry goes where it belongs: into the exponent
    half >>= np.uint32(13)
    half -= _HALF_BIAS
    half[small] = steps
    sign = np.right_shift(bits, np.uint32(16), out=magnitude)
    sign &= np.uint32(0x8000)
    half |= sign
    return half


@dataclass(frozen=True, slots=True)
class Brain(Codec):
    """bfloat16: float32's range with eight significant bits; what would round beyond its largest number stays there.

    Stochastic: unbiased, ω = 2^-16. Nearest: biased, α = 1 − 2^-16. Both for normal float32 numbers up to 3.38e38.

    Attributes:
        stochastic: round stochastically.
    """

    stochastic: bool = False
    name: ClassVar[str] = "bfloat16"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Brain:
        """Make it from ``bfloat16`` or ``bfloat16:stochastic``."""
        arguments_of("bfloat16[:stochastic]", arguments, 0, 1)
        return cls(is_stochastic(arguments, "bfloat16[:stochastic]"))

    @property
    def spec(self) -> str:
        """``bfloat16`` or ``bfloat16:stochastic``."""
        return "bfloat16:stochastic" if self.stochastic else "bfloat16"

    @property
    def is_unbiased(self) -> bool:
        """True if stochastic."""
        return self.stochastic

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def omega(self, elements: int) -> float:
        """Return 2^-16 if stochastic."""
        return 2.0**-16 if self.stochastic else math.inf

    def alpha(self, elements: int) -> float:
        """Return 1/(1 + ω) if stochastic, else 1 − 2^-16."""
        return 1 / (1 + 2.0**-16) if self.stochastic else 1 - 2.0**-16

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return 2 · d."""
        return 2 * elements

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> Buffer:
        """Return the body."""
        stream, body = noise(seed), np.empty(vector.size, "<u2")
        for start, end in blocks_of(vector.size):
            bits = single(self.name, vector[start:end]).view(np.uint32)
            magnitude = bits & np.uint32(0x7FFFFFFF)
            if self.stochastic:
                up = short_words(stream, bits.size, 16)
            else:
                up = magnitude >> np.uint32(16)
                up &= np.uint32(1)  # ties to even
                up += np.uint32(0x7FFF)
            magnitude += up
            magnitude >>= np.uint32(16)
            np.minimum(magnitude, _BRAIN_MAX, out=magnitude)
            sign = np.right_shift(bits, np.uint32(16), out=up)
            sign &= np.uint32(0x8000)
            magnitude |= sign
            body[start:end] = magnitude
        return body.view(np.uint8).data

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> CastDecoder:
        """Return the decoder."""
        expect_bytes(self.name, body, 2 * elements)
        return CastDecoder(body, elements, brain=True)


@functools.cache
def _half_values() -> Array:
    """Return every float16 as float32, by its bits: NumPy's conversion of subnormal numbers takes ten times as long."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


class CastDecoder:
    """Widens two-byte floats: the upper half of a float32 if `brain`, IEEE half precision if not."""

    def __init__(self, body: Source, elements: int, *, brain: bool) -> None:
        self._body, self._elements, self._brain = body, elements, brain

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        size = block_size(self._elements, block)
        raw = read_array(self._body, block * BLOCK_ELEMENTS * 2, size, "<u2")
        if self._brain:
            out[:] = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif out.dtype == np.float32:
            np.take(_half_values(), raw, out=out, mode="clip")
        else:
            out[:] = _half_values()[raw]
        if not math.isfinite(float(out.min())) or not math.isfinite(float(out.max())):
            raise ValueError(f"block {block} holds a value that is not finite")
