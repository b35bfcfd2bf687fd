"""Whether a flat buffer holds numbers that have an L2 norm, and which: one pass, pieces of any size, O(block) memory.

Rules:

1. Pieces come in buffer order and may end anywhere, even inside an element.
2. Floats are squared and summed block by block (BLAS), blocks are added in float64. A finite sum of squares proves
   every element finite; only where it is not, as float32 squares overflow beyond 1e19, is the block looked at again.
   Where it is not even in float64, as of elements of 1e154, there is no norm, and the buffer is refused.
3. Integers and booleans have no norm and are always finite: they are skipped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from federation.tensors.schema import DType, TensorSchema

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK_ELEMENTS = 1 << 13
"""Below the size from which OpenBLAS splits a dot product over threads: sums must not depend on their number."""
_NARROW = (DType.FLOAT16, DType.BFLOAT16)
_PLAIN = (DType.FLOAT32, DType.FLOAT64)
_ALIGNED_BLOCKS = 16
"""Blocks moved at a time to where arithmetic may begin: a piece lies where its message has it."""


class NotFiniteError(ValueError):
    """A flat buffer holds a NaN, an infinity, or numbers whose squares add up to one.

    Args:
        tensor: name of the first tensor that does.
        is_too_large: the numbers are finite, and only their squares are not.

    Attributes:
        tensor: as given.
    """

    def __init__(self, tensor: str, *, is_too_large: bool = False) -> None:
        found = "numbers too large to be squared and summed" if is_too_large else "a number that is not finite"
        super().__init__(f"tensor {tensor!r} holds {found}")
        self.tensor = tensor


def norm_of(schema: TensorSchema, buffer: bytes | bytearray | memoryview) -> float:
    """Return the L2 norm of a whole flat buffer's floats: that of a `TensorScan`, sooner where it is small.

    Raises:
        NotFiniteError: an element is NaN or infinite, or the squares are too large to be summed.
        ValueError: more or fewer bytes than the schema has.
    """
    if len(schema.segments) == 1 and schema.segments[0].elements < _BLOCK_ELEMENTS:
        dtype = schema.segments[0].dtype
        if dtype in _PLAIN and memoryview(buffer).nbytes == schema.nbytes:
            values = np.frombuffer(buffer, dtype=dtype.numpy)
            with np.errstate(over="ignore", invalid="ignore"):
                squares = float(np.dot(values, values))
            if math.isfinite(squares):
                return math.sqrt(squares)
    scan = TensorScan(schema)
    scan.feed(buffer)
    scan.finish()
    return scan.norm


class TensorScan:
    """One pass over one flat buffer.

    Args:
        schema: layout of the buffer.
    """

    def __init__(self, schema: TensorSchema) -> None:
        self._schema = schema
        self._position = 0
        self._squares = 0.0
        self._carry = b""
        self._segment = 0
        self._wide: npt.NDArray[np.float32] | None = None
        self._aligned: npt.NDArray[np.uint8] | None = None

    @property
    def position(self) -> int:
        """Bytes seen so far."""
        return self._position + len(self._carry)

    @property
    def squared_norm(self) -> float:
        """Sum of squares of the float elements seen so far."""
        return self._squares

    @property
    def norm(self) -> float:
        """L2 norm of the float elements seen so far."""
        return math.sqrt(self._squares)

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Look at the next piece; it is not kept.

        Raises:
            NotFiniteError: an element is NaN or infinite, or the squares are too large to be summed; the scan is then
                of no further use.
            ValueError: more bytes than the schema has.
        """
        view = memoryview(piece).cast("B")
        if self.position + view.nbytes > self._schema.nbytes:
            raise ValueError(f"{self.position + view.nbytes} bytes are more than the schema's {self._schema.nbytes}")
        while view.nbytes:
            view = self._feed_segment(view)

    def finish(self) -> None:
        """Check that the whole buffer was seen.

        Raises:
            ValueError: bytes are missing.
        """
        if self.position != self._schema.nbytes:
            raise ValueError(f"{self.position} bytes were seen, the schema has {self._schema.nbytes}")

    def _feed_segment(self, view: memoryview) -> memoryview:
        """Take what belongs to the present segment and return the rest."""
        segment = self._schema.segments[self._segment]
        size = segment.dtype.itemsize
        room = segment.offset + segment.nbytes - self._position
        if self._carry:
            missing = size - len(self._carry)
            element, view = self._carry + bytes(view[:missing]), view[missing:]
            if len(element) < size:
                self._carry = element
                return view
            self._carry = b""
            self._take(segment.dtype, memoryview(element))
        else:
            whole = min(room, view.nbytes) // size * size
            self._take(segment.dtype, view[:whole])
            view = view[whole:]
            if view.nbytes and whole < room:
                self._carry = bytes(view)
                return view[view.nbytes :]
        if self._position == segment.offset + segment.nbytes:
            self._segment += 1
        return view

    def _take(self, dtype: DType, view: memoryview) -> None:
        if dtype.is_float:
            values = np.frombuffer(view, dtype=dtype.numpy)
            with np.errstate(over="ignore", invalid="ignore"):
                is_short = values.size < _BLOCK_ELEMENTS or dtype in _NARROW
                done = 0 if is_short else self._take_whole_blocks(values)
                for start in range(done, values.size, _BLOCK_ELEMENTS):
                    self._squares += self._squares_of(dtype, values[start : start + _BLOCK_ELEMENTS], start)
        self._position += view.nbytes

    def _take_whole_blocks(self, values: npt.NDArray[Any]) -> int:
        """Add what whole blocks sum to if all of it is finite; return how many elements were taken.

        The same sums as block by block, in one call: each call gives the interpreter lock away and must win it back.
        """
        blocks = values[: values.size // _BLOCK_ELEMENTS * _BLOCK_ELEMENTS].reshape(-1, _BLOCK_ELEMENTS)
        sums: list[float] = []
        for part in self._aligned_parts(blocks):
            sums += np.vecdot(part, part).tolist()
        total = self._squares
        for squares in sums:
            total += squares
        if not math.isfinite(total):
            return 0
        self._squares = total
        return int(blocks.size)

    def _aligned_parts(self, blocks: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Yield blocks where arithmetic may begin: NumPy would copy them all at once, to memory that no cache holds."""
        if blocks.flags.aligned:
            yield blocks
            return
        if self._aligned is None:
            self._aligned = np.empty(_ALIGNED_BLOCKS * _BLOCK_ELEMENTS * 8, dtype=np.uint8)
        for start in range(0, len(blocks), _ALIGNED_BLOCKS):
            part = blocks[start : start + _ALIGNED_BLOCKS]
            moved = self._aligned[: part.nbytes].view(part.dtype).reshape(part.shape)
            np.copyto(moved, part)
            yield moved

    def _squares_of(self, dtype: DType, block: npt.NDArray[Any], start: int) -> float:
        if dtype in _NARROW:
            if self._wide is None:
                self._wide = np.empty(_BLOCK_ELEMENTS, dtype=np.float32)
            wide = self._wide[: block.size]
            np.copyto(wide, block)
            block = wide
        squares = float(np.dot(block, block))
        double = block
        if not math.isfinite(squares):
            double = block.astype(np.float64)
            squares = float(np.dot(double, double))
        if not math.isfinite(self._squares + squares):
            bad = int(np.argmin(np.isfinite(self._squares + np.cumsum(np.square(double)))))
            tensor = self._tensor_at(self._position + (start + bad) * dtype.itemsize)
            raise NotFiniteError(tensor, is_too_large=math.isfinite(double[bad]))
        return squares

    def _tensor_at(self, offset: int) -> str:
        return next(spec.name for spec in self._schema if offset < self._schema.offsets[spec.name] + spec.nbytes)
