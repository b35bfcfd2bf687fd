"""PowerSGD (Vogels et al., arXiv:1905.13727): each matrix as P·Qᵀ of rank r, by one step of subspace iteration.

A tensor of two or more dimensions is a matrix M of shape[0] rows. P = orth(M·Q₀), Q = Mᵀ·P; both travel, P·Qᵀ is the
answer. Q₀ is the Q of the site's last round, which `federation.compression.feedback.WarmQ` keeps; without one, and for
columns that have died, it is drawn from the seed. Tensors of one dimension, and matrices that r·(m + n) numbers would
not make smaller, travel as they are.

Body: tensor after tensor, P (m × r) and Q (n × r) row by row, or the elements; all in the vector's dtype. A block needs
only its own rows of P, so it is decoded without the whole; products are summed over r element by element.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.codec import BLOCK_ELEMENTS, Codec, expect_bytes, read_array
from federation.compression.options import arguments_of, whole_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.compression.codec import Array, Shapes, Source


@dataclass(frozen=True, slots=True)
class Piece:
    """How one tensor lies in a body: `rows` × `columns` at `rank`, or `rows` raw elements where `rank` is 0."""

    rows: int
    columns: int
    rank: int

    @property
    def elements(self) -> int:
        """Elements of the tensor."""
        return self.rows * self.columns

    @property
    def numbers(self) -> int:
        """Numbers of it in the body."""
        return self.rank * (self.rows + self.columns) if self.rank else self.elements


def piece_of(shape: tuple[int, ...], rank: int) -> Piece:
    """Return how a tensor of `shape` is sent at rank `rank`."""
    elements = math.prod(shape)
    rows = shape[0] if len(shape) > 1 else elements
    columns = elements // rows
    low = min(rank, rows, columns)
    if len(shape) < 2 or low * (rows + columns) >= elements:
        return Piece(elements, 1, 0)
    return Piece(rows, columns, low)


@dataclass(frozen=True, slots=True)
class PowerSgd(Codec):
    """C(M) = P·Qᵀ, the projection of M on r directions; biased, ‖C(M) − M‖ ≤ ‖M‖, no α is promised.

    Attributes:
        rank: r, 1 to 32.
        start: Q₀ of every matrix of the vector, one after another; set by `warmed`, no part of the specification.
    """

    rank: int
    start: Array | None = None
    name: ClassVar[str] = "powersgd"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> PowerSgd:
        """Make it from ``powersgd:4``."""
        arguments_of("powersgd:RANK", arguments, 1, 1)
        return cls(whole_of(arguments[0], "rank", 1, 32))

    @property
    def spec(self) -> str:
        """``powersgd:r``."""
        return f"powersgd:{self.rank}"

    @property
    def takes_own_feedback(self) -> bool:
        """True: error feedback that keeps Q too."""
        return True

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of every body."""
        return itemsize * sum(piece_of(shape, self.rank).numbers for shape in shapes)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body; `seed` draws what Q₀ lacks."""
        rng = np.random.default_rng(seed)
        parts: list[bytes] = []
        position = used = 0
        for shape in shapes:
            piece = piece_of(shape, self.rank)
            part = vector[position : position + piece.elements]
            position += piece.elements
            if not piece.rank:
                parts.append(part.tobytes())
                continue
            size = piece.columns * piece.rank
            start = None if self.start is None else self.start[used : used + size]
            used += size
            p, q = _factors(part.reshape(piece.rows, piece.columns), _first(piece, start, rng))
            parts += [p.tobytes(), q.tobytes()]
        return b"".join(parts)

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> PowerSgdDecoder:
        """Return the decoder."""
        expect_bytes(self.name, body, self.max_bytes(elements, dtype.itemsize, shapes))
        return PowerSgdDecoder(body, dtype, [piece_of(shape, self.rank) for shape in shapes])

    def warmed(self, state: Mapping[str, Array], segment: int) -> PowerSgd:
        """Return the codec that starts from ``state["q/<segment>"]``."""
        start = state.get(f"q/{segment}")
        return self if start is None else replace(self, start=start)

    def last_q(self, body: Source, dtype: np.dtype[Any], shapes: Shapes) -> Array:
        """Return the Qs of a body of our own, one after another."""
        found = [np.empty(0, dtype)]
        position = 0
        for shape in shapes:
            piece = piece_of(shape, self.rank)
            if piece.rank:
                at = (position + piece.rows * piece.rank) * dtype.itemsize
                found.append(read_array(body, at, piece.columns * piece.rank, dtype))
            position += piece.numbers
        return np.concatenate(found)


def _first(piece: Piece, start: Array | None, rng: np.random.Generator) -> Array:
    """Return Q₀, float64; columns that are zero or missing are drawn, since zero stays zero for ever."""
    drawn: Array = rng.standard_normal((piece.columns, piece.rank))
    if start is None or start.size != drawn.size:
        return drawn
    q = start.reshape(drawn.shape).astype(np.float64)
    dead = ~q.any(axis=0)
    q[:, dead] = drawn[:, dead]
    return q


def _factors(matrix: Array, first: Array) -> tuple[Array, Array]:
    """Return P and Q of one step. einsum, not BLAS: its sums do not depend on the number of threads."""
    # Q₀ is brought to unit columns, so that neither product can leave the range of the dtype.
    first = first / np.maximum(np.abs(first).max(axis=0), np.finfo(np.float64).tiny)
    largest = float(max(matrix.max(), -matrix.min()))
    scaled = matrix / matrix.dtype.type(largest or 1.0)
    p = np.einsum("ij,jk->ik", scaled, np.ascontiguousarray(first.astype(matrix.dtype))).astype(np.float64)
    p = _orthonormal(p).astype(matrix.dtype)
    q = np.einsum("ij,ik->jk", scaled, p)
    q = q.astype(np.float64) * largest
    if not np.isfinite(q).all() or np.abs(q).max() > float(np.finfo(matrix.dtype).max):
        raise ValueError(f"a matrix is too large for its factors in {matrix.dtype.name}; use top_k")
    return p, q.astype(matrix.dtype)


def _orthonormal(p: Array) -> Array:
    """Return orthonormal columns that span `p`'s, by Gram-Schmidt done twice; what is left of dependent ones is 0."""
    out = np.zeros_like(p)
    for column in range(p.shape[1]):
        v = p[:, column].copy()
        before = math.sqrt(float(np.einsum("i,i->", v, v)))
        for _ in range(2):
            for other in range(column):
                v -= float(np.einsum("i,i->", out[:, other], v)) * out[:, other]
        after = math.sqrt(float(np.einsum("i,i->", v, v)))
        if after > 1e-6 * before:
            out[:, column] = v / after
    return out


class PowerSgdDecoder:
    """Multiplies the rows of P that a block covers with Q."""

    def __init__(self, body: Source, dtype: np.dtype[Any], pieces: Sequence[Piece]) -> None:
        self._body, self._dtype, self._pieces = body, dtype, pieces
        self._firsts = [0, *accumulate(piece.elements for piece in pieces)]
        self._places = [0, *accumulate(piece.numbers for piece in pieces)]

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        position, end = block * BLOCK_ELEMENTS, block * BLOCK_ELEMENTS + out.size
        written = 0
        while position < end:
            index = bisect_right(self._firsts, position) - 1
            inside = position - self._firsts[index]
            take = min(end, self._firsts[index + 1]) - position
            self._read_piece(index, inside, out[written : written + take])
            position, written = position + take, written + take

    def _read_piece(self, index: int, first: int, out: Array) -> None:
        """Decode elements of one tensor from its element `first` on."""
        piece, place = self._pieces[index], self._places[index]
        if not piece.rank:
            out[:] = self._numbers(place + first, out.size)
            return
        done = 0
        while done < out.size:
            row, column = divmod(first + done, piece.columns)
            left = out.size - done
            # A part of one row, or as many whole rows as there are.
            rows = left // piece.columns if not column else 0
            width = piece.columns if rows else min(left, piece.columns - column)
            self._multiply(piece, place, (row, max(rows, 1)), (column, width), out[done : done + max(rows, 1) * width])
            done += max(rows, 1) * width

    def _multiply(self, piece: Piece, place: int, rows: tuple[int, int], columns: tuple[int, int], out: Array) -> None:
        """Write rows (first, number) and columns (first, number) of P·Qᵀ."""
        rank = piece.rank
        p = self._numbers(place + rows[0] * rank, rows[1] * rank).reshape(-1, rank)
        q_place = place + piece.rows * rank + columns[0] * rank
        q = np.ascontiguousarray(self._numbers(q_place, columns[1] * rank).reshape(-1, rank).T)
        target = out.reshape(rows[1], columns[1])
        np.multiply(p[:, :1], q[0], out=target)
        spare = np.empty_like(target)
        for k in range(1, rank):
            target += np.multiply(p[:, k : k + 1], q[k], out=spare)

    def _numbers(self, place: int, count: int) -> Array:
        return read_array(self._body, place * self._dtype.itemsize, count, self._dtype)
