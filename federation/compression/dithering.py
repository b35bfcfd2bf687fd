"""Random dithering: each |x_j|/‖x‖_p rounded, without bias, to one of s + 1 levels; the norm travels once.

- ``dithering:s,p``: levels 0, 1/s, …, 1 in the p-norm;
- ``qsgd:s``: the same in the L2 norm (Alistarh et al., arXiv:1610.02132);
- ``terngrad``: s = 1 in the maximum norm (Wen et al., arXiv:1705.07878).

The signed level is floor(y + r) for y = s·x/‖x‖_p and r uniform on [0, 1): E floor(y + r) = y for either sign, so signs
need no care. ``natural_dithering`` has levels of powers of two: `federation.compression.natural_dithering`.

Body: norm f32; signed level + s of each element in ⌈log2(2s + 1)⌉ bits, block after block. A zero vector is all zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.bits import noise, pack, packed_bytes, uniforms, unpack
from federation.compression.codec import BLOCK_ELEMENTS, Codec, block_size, blocks_of, expect_bytes, read_array
from federation.compression.options import arguments_of, number_of, text_of, whole_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Shapes, Source

_LARGEST_NORM = float(np.finfo(np.float32).max) * (1 - 2.0**-20)
"""So that no level times the norm rounds to infinity."""


@dataclass(frozen=True, slots=True)
class Dithering(Codec):
    """C(x)_j = sign(x_j)·‖x‖_p·l_j/s, E l_j = s|x_j|/‖x‖_p; unbiased.

    ω = min(d^{2/r}/s², d^{1/r}/s) with r = min(p, 2); for p = ∞ the exact (√(1 + (d − 1)/s²) − 1)/2.

    Attributes:
        s: levels above zero, 1 to 32767.
        p: which norm, 1 to infinity.
    """

    s: int
    p: float = 2.0
    name: ClassVar[str] = "dithering"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Dithering:
        """Make it from ``dithering:8,2`` or ``dithering:8,inf``."""
        arguments_of("dithering:LEVELS,NORM", arguments, 1, 2)
        p = arguments[1] if len(arguments) > 1 else "2"
        return cls(whole_of(arguments[0], "levels", 1, 32767), norm_order(p))

    @property
    def spec(self) -> str:
        """``dithering:s,p``."""
        return f"dithering:{self.s},{order_text(self.p)}"

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
        if math.isinf(self.p):
            return (math.sqrt(1 + (elements - 1) / self.s**2) - 1) / 2
        root: float = elements ** (1 / min(self.p, 2.0))
        return min((root / self.s) ** 2, root / self.s)

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of every body: 4 bytes and ⌈log2(2s + 1)⌉ bits an element."""
        return 4 + packed_bytes(elements, self.width)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body."""
        norm = norm_of(vector, self.p)
        stream = noise(seed)
        kind = np.uint8 if self.width <= 8 else np.uint16
        parts = [np.float32(norm).tobytes()]
        for start, end in blocks_of(vector.size):
            # A zero vector has norm 0; dividing by 1 instead leaves it zero.
            y = (vector[start:end] / vector.dtype.type(norm or 1.0)).astype(np.float32, copy=False)
            y *= np.float32(self.s)
            y += uniforms(stream, y.size)
            np.floor(y, out=y)
            np.clip(y, -self.s, self.s, out=y)  # rounding may carry the largest element one level too far
            y += np.float32(self.s)
            parts.append(pack(y.astype(kind), self.width))
        return b"".join(parts)

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> DitheringDecoder:
        """Return the decoder after checking the norm."""
        expect_bytes(self.name, body, self.max_bytes(elements, dtype.itemsize, shapes))
        return DitheringDecoder(body, elements, self.width, self.s)


@dataclass(frozen=True, slots=True)
class Qsgd(Dithering):
    """QSGD (arXiv:1610.02132): dithering in the L2 norm; unbiased, ω = min(d/s², √d/s).

    Attributes:
        s: levels above zero, 1 to 32767.
        p: always 2.
    """

    name: ClassVar[str] = "qsgd"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Qsgd:
        """Make it from ``qsgd:16``."""
        arguments_of("qsgd:LEVELS", arguments, 1, 1)
        return cls(whole_of(arguments[0], "levels", 1, 32767))

    @property
    def spec(self) -> str:
        """``qsgd:s``."""
        return f"qsgd:{self.s}"


@dataclass(frozen=True, slots=True)
class TernGrad(Dithering):
    """TernGrad (arXiv:1705.07878): −1, 0 or 1 times the largest magnitude; unbiased, ω = (√d − 1)/2.

    Attributes:
        s: always 1.
        p: always infinity.
    """

    s: int = 1
    p: float = math.inf
    name: ClassVar[str] = "terngrad"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> TernGrad:
        """Make it from ``terngrad``, which takes no argument."""
        arguments_of("terngrad", arguments, 0, 0)
        return cls()

    @property
    def spec(self) -> str:
        """``terngrad``."""
        return "terngrad"


class DitheringDecoder:
    """Multiplies levels by norm/s."""

    def __init__(self, body: Source, elements: int, width: int, s: int) -> None:
        self._levels = LevelReader(body, elements, width, 2 * s)
        self._s = s

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        out[:] = self._levels.read(block)
        out -= self._s
        out *= self._levels.norm / self._s


class LevelReader:
    """Reads a norm and packed levels, each at most `largest`."""

    def __init__(self, body: Source, elements: int, width: int, largest: int) -> None:
        self.norm = float(read_array(body, 0, 1, "<f4")[0])
        if not 0 <= self.norm <= _LARGEST_NORM:
            raise ValueError(f"the norm of a dithered body must be finite and not negative, got {self.norm}")
        self._body, self._elements, self._width, self._largest = body, elements, width, largest

    def read(self, block: int) -> Array:
        """Return the codes of block number `block`."""
        size = block_size(self._elements, block)
        offset = 4 + block * packed_bytes(BLOCK_ELEMENTS, self._width)
        codes = unpack(read_array(self._body, offset, packed_bytes(size, self._width), "u1"), self._width, size)
        if int(codes.max()) > self._largest:
            raise ValueError(f"block {block} holds level {int(codes.max())}; {self._largest} is the highest")
        return codes


def norm_order(text: str) -> float:
    """Return p of a p-norm, from 1 on.

    Raises:
        ValueError: it is below 1 or no number.
    """
    p = number_of(text, "norm", 0.0, math.inf)
    if p < 1:
        raise ValueError(f"norm must be 1 or more, or inf, got {text!r}")
    return p


def order_text(p: float) -> str:
    """Return the canonical text of p."""
    return "inf" if math.isinf(p) else text_of(p)


def norm_of(vector: Array, p: float) -> float:
    """Return ‖vector‖_p as a float32 that is not below it, so that no ratio exceeds 1.

    Raises:
        ValueError: it is beyond float32.
    """
    largest = max(abs(float(vector.min())), abs(float(vector.max())))
    total = largest
    if largest and not math.isinf(p):
        sums = []
        for start, end in blocks_of(vector.size):
            ratio = vector[start:end].astype(np.float64)
            ratio /= largest  # so that no power overflows or vanishes
            sums.append(float(np.einsum("i,i->", ratio, ratio) if p == 2 else (np.abs(ratio) ** p).sum()))
        total = largest * math.fsum(sums) ** (1 / p)
    if total > _LARGEST_NORM:
        raise ValueError(f"the norm {total:g} of the vector is beyond float32; use rand_k or top_k")
    rounded = np.float32(total)
    return float(np.nextafter(rounded, np.float32(np.inf)) if float(rounded) < total else rounded)
