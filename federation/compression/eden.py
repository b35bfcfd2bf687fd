"""EDEN (Vargaftik et al., arXiv:2108.08842) and DRIVE, its one-bit case (arXiv:2105.08339).

Each block x (padded with zeros to a power of two, n) is rotated, z = Rx, by random signs and a Walsh-Hadamard
transform; z√n/‖x‖ is then nearly standard normal, so each coordinate goes to the nearest centroid of the best
quantiser of that law, Q(z); S = ‖x‖²/⟨z, Q(z)⟩ travels, and S·R⁻¹Q(z) is the answer. Exactly unbiased for a uniform
rotation, nearly so for this one.

The transform is made of additions only, on a square of about √n by √n, first down the columns, then (transposed) down
the others: its own inverse up to the factor n, and equal to the bit on any machine.

Body: u64 seed; f32 S per block; codes of ``bits`` bits, sign highest, block after block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.bits import pack, packed_bytes, unpack
from federation.compression.codec import (
    BLOCK_ELEMENTS,
    Codec,
    block_count,
    block_size,
    blocks_of,
    expect_bytes,
    read_array,
)
from federation.compression.natural import single
from federation.compression.options import arguments_of, whole_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Shapes, Source

CENTROIDS: dict[int, tuple[float, ...]] = {
    1: (0.7978845608028654,),
    2: (0.4527800398860679, 1.5104176087114887),
    3: (0.24509416307340598, 0.7560052489539643, 1.3439092613750225, 2.151945669890335),
    4: (
        0.12839501671105813, 0.38804823445328507, 0.6567589957631145, 0.9423402689122875,
        1.2562309480263467, 1.6180460517130526, 2.069016730231837, 2.732588804065177,
    ),
}  # fmt: skip
"""Positive centroids of the Lloyd-Max quantiser of the standard normal law, by bits."""
DISTORTION = {1: 0.36338022763241865, 2: 0.11748, 3: 0.03455, 4: 0.009501}
"""E(Q(z) − z)² of that quantiser."""


@dataclass(frozen=True, slots=True)
class Eden(Codec):
    """C(x) = S·R⁻¹Q(Rx) per block of 65536 elements; nearly unbiased, ω = D/(1 − D) as measured on long vectors.

    D is the distortion of the quantiser: ω is 0.571, 0.133, 0.036 and 0.0096 for 1 to 4 bits.

    Attributes:
        bits: bits of an element, 1 (DRIVE) to 4.
    """

    bits: int
    name: ClassVar[str] = "eden"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Eden:
        """Make it from ``eden:2``."""
        arguments_of("eden:BITS", arguments, 1, 1)
        return cls(whole_of(arguments[0], "bits", 1, 4))

    @classmethod
    def drive(cls, arguments: Sequence[str]) -> Eden:
        """Make the one-bit codec from ``drive``, which takes no argument; in frames it is ``eden:1``."""
        arguments_of("drive", arguments, 0, 0)
        return cls(1)

    @property
    def spec(self) -> str:
        """``eden:bits``."""
        return f"eden:{self.bits}"

    @property
    def is_unbiased(self) -> bool:
        """True, nearly: see the module."""
        return True

    def omega(self, elements: int) -> float:
        """Return D/(1 − D)."""
        return DISTORTION[self.bits] / (1 - DISTORTION[self.bits])

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of every body: 8 + 4 · blocks + `bits` bits an element, the last block padded."""
        padded = (block_count(elements) - 1) * BLOCK_ELEMENTS + _padded_size(_last(elements))
        return 8 + 4 * block_count(elements) + packed_bytes(padded, self.bits)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body; `seed` travels in it."""
        scales = np.zeros(block_count(vector.size), "<f4")
        codes: list[bytes] = []
        for block, (start, end) in enumerate(blocks_of(vector.size)):
            scale, packed = self._encode_block(single(self.name, vector[start:end]), seed, block)
            if scale * _padded_size(end - start) * CENTROIDS[self.bits][-1] > float(np.finfo(np.float32).max):
                raise ValueError("a block of the vector is too large for float32; use rand_k or top_k")
            scales[block] = scale
            codes.append(packed)
        return b"".join([np.uint64(seed).tobytes(), scales.tobytes(), *codes])

    def _encode_block(self, x: Array, seed: int, block: int) -> tuple[float, bytes]:
        """Return S and the packed codes of one block."""
        size = _padded_size(x.size)
        largest = max(float(x.max()), -float(x.min()))
        if not largest:
            return 0.0, bytes(packed_bytes(size, self.bits))
        z = np.zeros(size, np.float32)
        np.divide(x, np.float32(largest), out=z[: x.size])  # squares of the rest neither overflow nor vanish
        z.view(np.uint32)[:] ^= _signs(seed, block, size)
        squared = float(np.square(z, dtype=np.float64).sum())  # not BLAS, whose sums depend on its threads
        z = _rotate(z, _rows(size))  # √n · Rx
        table = np.array(CENTROIDS[self.bits], np.float32)
        magnitudes = np.abs(z) * np.float32(1 / math.sqrt(squared))
        levels = np.zeros(size, np.uint8)
        for bound in (table[1:] + table[:-1]) / 2:
            levels += magnitudes > bound
        # With unit centroids c and z = √n·Rx: S·R⁻¹Q(z) = ‖x‖²/⟨z, c⟩ · (signs · Hc).
        inner = float(np.multiply(np.abs(z), table[levels], dtype=np.float64).sum())
        codes = levels | ((z < 0).view(np.uint8) << np.uint8(self.bits - 1))
        return largest * squared / inner, pack(codes, self.bits)

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> EdenDecoder:
        """Return the decoder after checking the scales."""
        expect_bytes(self.name, body, self.max_bytes(elements, dtype.itemsize, shapes))
        return EdenDecoder(body, elements, self.bits)


class EdenDecoder:
    """Looks centroids up and rotates a block back."""

    def __init__(self, body: Source, elements: int, bits: int) -> None:
        self._body, self._elements, self._bits = body, elements, bits
        self._seed = int(read_array(body, 0, 1, "<u8")[0])
        self._scales = read_array(body, 8, block_count(elements), "<f4")
        if not (float(self._scales.min()) >= 0 and math.isfinite(float(self._scales.max()))):
            raise ValueError("eden scales must be finite and not negative")
        positive = np.array(CENTROIDS[bits], np.float32)
        self._table = np.concatenate((positive, -positive))

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        size = _padded_size(block_size(self._elements, block))
        start = 8 + 4 * self._scales.size + block * packed_bytes(BLOCK_ELEMENTS, self._bits)
        codes = unpack(read_array(self._body, start, packed_bytes(size, self._bits), "u1"), self._bits, size)
        x = _rotate(self._table[codes], size // _rows(size))
        x.view(np.uint32)[:] ^= _signs(self._seed, block, size)
        out[:] = x[: out.size]
        out *= self._scales[block]


def _last(elements: int) -> int:
    return elements - (block_count(elements) - 1) * BLOCK_ELEMENTS


def _padded_size(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _rows(size: int) -> int:
    """Return the rows of the rectangle a vector of 2^k elements is transformed in: 2^⌊k/2⌋."""
    return 1 << ((size.bit_length() - 1) // 2)


def _signs(seed: int, block: int, size: int) -> Array:
    """Return `size` words whose top bit is random and the rest 0: XOR with them flips signs of float32."""
    raw = np.random.Philox(key=seed, counter=[0, 0, 0, block]).random_raw(-(-size // 64))
    bits = np.unpackbits(raw.astype("<u8", copy=False).view(np.uint8), count=size, bitorder="little")
    return bits.astype(np.uint32) << np.uint32(31)


def _rotate(x: Array, rows: int) -> Array:
    """Return the Walsh-Hadamard transform of `x` with its index transposed; applied with size/rows it is undone.

    H_n = H_r ⊗ H_c: on the rectangle X of r rows this is (H_r X H_c)ᵀ, computed as H_c (H_r X)ᵀ.
    """
    square = x.reshape(rows, -1)
    _transform_columns(square)
    turned = np.ascontiguousarray(square.T)
    _transform_columns(turned)
    return turned.reshape(-1)


def _transform_columns(x: Array) -> None:
    """Apply the unnormalised Hadamard matrix to every column of `x`, in place."""
    rows, columns = x.shape
    spare = np.empty(x.size // 2, x.dtype)
    step = 1
    while step < rows:
        halves = x.reshape(rows // (2 * step), 2, step * columns)
        upper, lower = halves[:, 0], halves[:, 1]
        difference = np.subtract(upper, lower, out=spare.reshape(upper.shape))
        upper += lower
        lower[:] = difference
        step *= 2
