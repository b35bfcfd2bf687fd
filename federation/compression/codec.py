"""What a codec is: one vector in, a body of bytes out, and blocks of the vector back.

Rules, in order:

1. A vector is one-dimensional, contiguous, float32 or float64, finite and not empty: `frame` sees to it.
2. A body is tables first, then blocks. Block i holds elements [i·B, min((i+1)·B, d)), B = `BLOCK_ELEMENTS`, and can be
   decoded without the blocks before it. All numbers are little-endian.
3. A decoder is told d and the shapes by the receiver's own schema. It allocates two blocks and tables proportional to
   the number of blocks, whatever a body claims; everything malformed is a ValueError.
4. What a decoder draws at random comes from raw Philox words, whose values no NumPy release changes (`Generator`
   methods may change); what an encoder draws may come from a `Generator`.
5. Equal vector, seed and shapes give equal bytes, and a body decodes to equal bits on any machine: decoders use IEEE
   operations element by element, never BLAS.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Array: TypeAlias = NDArray[Any]
Buffer: TypeAlias = bytes | bytearray | memoryview
Shapes: TypeAlias = "Sequence[tuple[int, ...]]"

BLOCK_ELEMENTS = 1 << 16
"""Elements of a block: those of an aggregation tile, so a tile is one block."""


class Source(Protocol):
    """Bytes that can be read at any offset; `federation.storage.disk.Readable` is one."""

    @property
    def nbytes(self) -> int:
        """Size, bytes."""
        ...

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on; callers stay inside `nbytes`."""
        ...


class BlockDecoder(Protocol):
    """Reads one body block by block, in any order."""

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`.

        Args:
            block: from 0.
            out: exactly the block's elements, 1-D, contiguous, of the decoder's dtype; every element is written.

        Raises:
            ValueError: the block cannot be what an encoder wrote.
        """
        ...


class Codec(Protocol):
    """One way to make a vector x of d elements smaller: C(x). Immutable; subclass it to write another.

    Attributes:
        name: the part before the colon of a specification.
    """

    name: ClassVar[str]

    @property
    def spec(self) -> str:
        """The specification in its one canonical form; it names the codec in a frame. ASCII, at most 255 bytes."""
        return self.name

    @property
    def is_unbiased(self) -> bool:
        """True if E C(x) = x."""
        return False

    @property
    def is_elementwise(self) -> bool:
        """True if each element's code is its own, but for a scale: made in one pass at memory speed."""
        return False

    @property
    def takes_own_feedback(self) -> bool:
        """True if the codec needs a feedback of its own rather than plain error feedback."""
        return False

    def omega(self, elements: int) -> float:
        """Return ω with E‖C(x) − x‖² ≤ ω‖x‖² for d = `elements`; infinite for a biased codec."""
        return math.inf

    def alpha(self, elements: int) -> float:
        """Return α with E‖C(x) − x‖² ≤ (1 − α)‖x‖²; for unbiased codecs that of C(x)/(1 + ω); 0 if there is none."""
        omega = self.omega(elements)
        return 1.0 / (1.0 + omega) if math.isfinite(omega) else 0.0

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of the largest body of d = `elements` elements of `itemsize` bytes, in bytes."""
        ...

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> Buffer:
        """Return the body of `vector`: bytes, or a view of bytes, of `vector` itself maybe, that is copied at once.

        Args:
            vector: 1-D, contiguous, float32 or float64, finite, at least one element; never written.
            seed: 64-bit seed of everything drawn.
            shapes: shapes of the tensors that lie in it, one after another.

        Raises:
            ValueError: the codec cannot express a value, such as 1e30 in float16.
        """
        ...

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> BlockDecoder:
        """Return a decoder after checking size and tables of `body`.

        Raises:
            ValueError: no encoder writes such a body for `elements`, `dtype` and `shapes`.
        """
        ...

    def warmed(self, state: Mapping[str, Array], segment: int) -> Codec:
        """Return the codec to encode segment number `segment` with, given a feedback's state; itself by default."""
        return self


def blocks_of(elements: int) -> Iterator[tuple[int, int]]:
    """Yield (first element, end) of every block of a vector."""
    for start in range(0, elements, BLOCK_ELEMENTS):
        yield start, min(start + BLOCK_ELEMENTS, elements)


def block_count(elements: int) -> int:
    """Return the number of blocks of a vector."""
    return -(-elements // BLOCK_ELEMENTS)


def block_size(elements: int, block: int) -> int:
    """Return the number of elements of block number `block`."""
    return min(elements - block * BLOCK_ELEMENTS, BLOCK_ELEMENTS)


def read_array(source: Source, offset: int, count: int, dtype: str | np.dtype[Any]) -> Array:
    """Return `count` numbers read at `offset`; the caller has checked that they are there and few enough."""
    out = np.empty(count, dtype)
    if count:
        source.pread_into(offset, out.view(np.uint8).data)
    return out


def expect_bytes(name: str, body: Source, expected: int) -> None:
    """Check the size of a body.

    Raises:
        ValueError: it is not `expected` bytes.
    """
    if body.nbytes != expected:
        raise ValueError(f"{name} body has {body.nbytes} bytes; {expected} are needed")


class BytesSource:
    """A `Source` over bytes in memory."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")

    @property
    def nbytes(self) -> int:
        """Size, bytes."""
        return self._view.nbytes

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on."""
        target = memoryview(view).cast("B")
        target[:] = self._view[offset : offset + target.nbytes]


class PartSource:
    """The `nbytes` bytes of `whole` from `offset` on, as a `Source`."""

    def __init__(self, whole: Source, offset: int, nbytes: int) -> None:
        self._whole, self._offset, self._nbytes = whole, offset, nbytes

    @property
    def nbytes(self) -> int:
        """Size, bytes."""
        return self._nbytes

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on."""
        self._whole.pread_into(self._offset + offset, view)
