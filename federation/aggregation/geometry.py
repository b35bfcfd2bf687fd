"""How far the vectors of a round lie from one another, in one pass and in arithmetic that a hostile one cannot spoil.

1. Everything follows from one Gram matrix G_ij = ⟨v_i - c, v_j - c⟩ in float64, summed tile by tile in order. The
   centre c is the coordinate-wise median: between honest values whatever a minority sends. Centred on nothing, or on
   one update, a huge vector or a common offset would cancel the distances of the honest ones away.
2. Products are taken in blocks too small for the linear algebra below to split over threads of its own.
3. Where elements are float64 they may square to infinity or to nothing: vectors are then measured in units of a power
   of two near the median of their largest elements, found in a pass before, and cut off at 1e100 of those.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.columns import gather_columns
from federation.aggregation.sorting import median_row
from federation.tensors import DType

if TYPE_CHECKING:
    from federation.aggregation.columns import Scratch
    from federation.aggregation.tiles import Array, TileSource

_BLOCK_ROWS, _BLOCK_COLUMNS = 32, 256
"""A product of 32 x 256 by 256 x 32: the largest that OpenBLAS leaves to the calling thread."""
_FARTHEST = 1e100


@dataclass(frozen=True, slots=True)
class Geometry:
    """Inner products of centred vectors.

    Attributes:
        gram: float64, (n, n), symmetric: ⟨v_i - c, v_j - c⟩ / unit².
        unit: a power of two.
    """

    gram: Array
    unit: float = 1.0

    def squared_distances(self) -> Array:
        """Return ‖v_i - v_j‖² / unit², float64, (n, n): 0 or more, exactly symmetric, 0 on the diagonal."""
        squares = np.diagonal(self.gram)
        found: Array = np.maximum(squares[:, None] + squares[None, :] - 2 * self.gram, 0.0)
        np.fill_diagonal(found, 0.0)
        return found

    def mixed(self, mixing: Array) -> Geometry:
        """Return the geometry of Σ_j mixing_ij v_j, where each row of `mixing` sums to 1."""
        return Geometry(mixing @ self.gram @ mixing.T, self.unit)


def measure(source: TileSource, threads: int | None = None) -> Geometry:
    """Return the geometry of a source, centred on the coordinate-wise median.

    Raises:
        ValueError: there is no site.
    """
    unit = _unit(source, threads)
    sites = len(source.sites)
    gram = np.zeros((sites, sites))
    for part in gather_columns(source, functools.partial(_centred_gram, unit=unit), threads):
        gram += part
    return Geometry(gram, unit)


def norms(source: TileSource, threads: int | None = None) -> list[float]:
    """Return ‖v_i‖ of every vector, float64; largest and smallest elements may be of any size.

    Raises:
        ValueError: there is no site.
    """
    units = np.ones(len(source.sites))
    if _may_overflow(source):
        largest = np.zeros(len(source.sites))
        for part in gather_columns(source, _largest_elements, threads):
            np.maximum(largest, part, out=largest)
        units = np.ldexp(1.0, np.frexp(np.where(largest > 0, largest, 1.0))[1] - 1)
    squares = np.zeros(len(source.sites))
    for part in gather_columns(source, functools.partial(_squares, units=units), threads):
        squares += part
    return [float(norm) for norm in np.sqrt(squares) * units]


def products(left: Array, right: Array, out: Array) -> Array:
    """Add left @ right.T to `out`, in blocks that no linear algebra splits among threads; all float64."""
    for start in range(0, left.shape[1], _BLOCK_COLUMNS):
        columns = slice(start, start + _BLOCK_COLUMNS)
        for i in range(0, left.shape[0], _BLOCK_ROWS):
            rows = slice(i, i + _BLOCK_ROWS)
            for j in range(0, right.shape[0], _BLOCK_ROWS):
                others = slice(j, j + _BLOCK_ROWS)
                out[rows, others] += left[rows, columns] @ right[others, columns].T
    return out


def _squares(rows: Array, scratch: Scratch, *, units: Array) -> Array:
    wide = np.divide(rows, units[:, None], out=scratch.array("wide", rows.shape))
    found: Array = np.einsum("ij,ij->i", wide, wide)
    return found


def _largest_elements(rows: Array, _: Scratch) -> Array:
    found: Array = np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0))
    return found


def _centre(rows: Array, scratch: Scratch) -> Array:
    """Return rows minus their coordinate-wise median, float64."""
    median = median_row(rows, scratch, scratch.array("centre", rows.shape[1:]))
    return np.subtract(rows, median, out=scratch.array("centred", rows.shape))


def _centred_gram(rows: Array, scratch: Scratch, *, unit: float) -> Array:
    centred = _centre(rows, scratch)
    if unit != 1.0:
        np.divide(centred, unit, out=centred)
    if rows.dtype == np.float64:
        np.clip(centred, -_FARTHEST, _FARTHEST, out=centred)
    return products(centred, centred, np.zeros((rows.shape[0], rows.shape[0])))


def _largest_centred(rows: Array, scratch: Scratch) -> Array:
    return _largest_elements(_centre(rows, scratch), scratch)


def _may_overflow(source: TileSource) -> bool:
    """Tell whether elements may square to infinity or to nothing: float32 and narrower never do."""
    return any(tile.dtype is DType.FLOAT64 for tile in source.tiles)


def _unit(source: TileSource, threads: int | None) -> float:
    if not _may_overflow(source):
        return 1.0
    largest = np.zeros(len(source.sites))
    for part in gather_columns(source, _largest_centred, threads):
        np.maximum(largest, part, out=largest)
    typical = float(np.median(largest))
    if typical <= 0:
        typical = float(min((value for value in largest if value > 0), default=1.0))
    if not math.isfinite(typical):
        return 1.0
    # A number just below the largest float64 would round up to a power of two that is infinite.
    return math.ldexp(1.0, math.frexp(typical)[1] - 1)
