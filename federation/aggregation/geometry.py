"""How far the vectors of a round lie from one another, in one pass and in arithmetic that a hostile one cannot spoil.

1. Everything follows from one Gram matrix G_ij = ⟨v_i - c, v_j - c⟩ in float64, summed tile by tile in order. Where two
   vectors of float32 or less are not nearly equal, c = 0 is as good as any: their products are exact in float64. Else
   the centre is the coordinate-wise median: between honest values whatever a minority sends. Never is it one update: a
   huge one would cancel the distances of the honest ones away.
2. Products are taken in blocks too small for the linear algebra below to split over threads of its own.
3. Where elements are float64 they may square to infinity or to nothing: each v_i - c is then measured in a unit of its
   own, a power of two near its largest element, found in a pass before.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.columns import gather_columns
from federation.aggregation.sorting import median_row
from federation.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.aggregation.columns import Scratch
    from federation.aggregation.tiles import Array, TileSource

_BLOCK_ROWS, _BLOCK_SIZE = 32, 32 * 256 * 32
"""Rows of one product, and its multiplications: the most that OpenBLAS leaves to the calling thread."""
_CANCELLED = 1e-9
"""Of a squared distance to the squared length: below it, less than seven digits of the distance are left."""
_FARTHEST = 1e100
"""How much farther than usual a vector is taken to be at most: its square is finite, and nothing is near it."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Inner products of centred vectors, each in a unit of its own.

    Attributes:
        gram: float64, (n, n), symmetric: ⟨v_i - c, v_j - c⟩ / (u_i u_j).
        units: u, float64, (n,): powers of two; all 1 where nothing can overflow.
    """

    gram: Array
    units: Array

    @property
    def typical(self) -> float:
        """The median of the units: what a minority cannot move out of the range of the others."""
        return float(np.sort(self.units)[(len(self.units) - 1) // 2])

    @property
    def scales(self) -> Array:
        """Return r_i = u_i / typical, capped."""
        found: Array = np.minimum(self.units / self.typical, _FARTHEST)
        return found

    def products(self) -> Array:
        """Return ⟨v_i - c, v_j - c⟩ / typical², float64, (n, n): vectors beyond the cap are taken to be at it."""
        scales = self.scales
        found: Array = self.gram * scales[:, None] * scales[None, :]
        return found

    def squared_distances(self) -> Array:
        """Return ‖v_i - v_j‖² / typical², float64, (n, n): 0 or more, exactly symmetric, 0 on the diagonal."""
        products = self.products()
        squares = np.diagonal(products)
        found: Array = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
        np.fill_diagonal(found, 0.0)
        return found


def measure(source: TileSource, threads: int | None = None) -> Geometry:
    """Return the geometry of a source about a centre that keeps every distance accurate.

    Raises:
        ValueError: there is no site.
    """
    if not _may_overflow(source):
        found = measure_about(source, np.zeros(len(source.sites)), threads)
        squares = np.diagonal(found.gram)
        distances = found.squared_distances()
        np.fill_diagonal(distances, np.inf)
        if (distances > _CANCELLED * np.maximum(squares[:, None], squares[None, :])).all():
            return found
    return measure_about(source, None, threads)


def measure_about(source: TileSource, centre: Array | None, threads: int | None = None) -> Geometry:
    """Return the geometry of a source about a centre of the caller's choice.

    Args:
        source: v_1 to v_n.
        centre: c = Σ_j centre_j v_j, float64, (n,), of vectors that are not hostile; None: the coordinate-wise median.
        threads: most threads; None: one per core.

    Raises:
        ValueError: there is no site.
    """
    sites = len(source.sites)
    centred = functools.partial(_centred, centre=centre)
    units = np.ones(sites)
    if _may_overflow(source):
        units = _units(source, lambda rows, scratch: _largest_elements(centred(rows, scratch)), threads)
    gram = np.zeros((sites, sites))

    def products_of(rows: Array, scratch: Scratch) -> Array:
        wide = centred(rows, scratch)
        if _may_overflow(source):
            np.clip(np.divide(wide, units[:, None], out=wide), -2.0, 2.0, out=wide)
        return products(wide)

    for part in gather_columns(source, products_of, threads):
        gram += part
    return Geometry(gram, units)


def norms(source: TileSource, threads: int | None = None) -> tuple[Array, float]:
    """Return ‖v_i‖ / u of every vector, float64, and u, a power of two: the norms themselves may be beyond any number.

    Raises:
        ValueError: there is no site.
    """
    units = np.ones(len(source.sites))
    if _may_overflow(source):
        units = _units(source, lambda rows, _: _largest_elements(rows), threads)
    squares = np.zeros(len(source.sites))
    for part in gather_columns(source, functools.partial(_squares, units=units), threads):
        squares += part
    geometry = Geometry(np.diag(squares), units)
    return np.sqrt(squares) * geometry.scales, geometry.typical


def products(rows: Array) -> Array:
    """Return rows @ rows.T, in blocks that no linear algebra splits among threads; all float64."""
    count, columns = rows.shape
    out = np.empty((count, count))
    # Half of the rows at a time against other rows: of a matrix and its own transpose the library makes a symmetric
    # product, which is slower for so few rows.
    size = min((count + 1) // 2, _BLOCK_ROWS)
    step = min(_BLOCK_SIZE // (size * min(count, 2 * _BLOCK_ROWS)), 1024) // 64 * 64
    whole = columns // step * step
    stacked = rows[:, :whole].reshape(count, -1, step).transpose(1, 0, 2)
    for i in range(0, count, size):
        for j in range(0, count, 2 * _BLOCK_ROWS):
            left, right = slice(i, i + size), slice(j, j + 2 * _BLOCK_ROWS)
            block = rows[left, whole:] @ rows[right, whole:].T
            if whole:
                block += np.matmul(stacked[:, left], stacked[:, right].transpose(0, 2, 1)).sum(axis=0)
            out[left, right] = block
    upper = np.triu_indices(count, 1)
    out[upper] = out.T[upper]
    return out


def _squares(rows: Array, scratch: Scratch, *, units: Array) -> Array:
    wide = scratch.array("wide", rows.shape)
    np.copyto(wide, rows)
    if (units != 1.0).any():
        np.divide(wide, units[:, None], out=wide)
    found: Array = np.einsum("ij,ij->i", wide, wide)
    return found


def _largest_elements(rows: Array) -> Array:
    found: Array = np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0))
    return found


def _centred(rows: Array, scratch: Scratch, *, centre: Array | None) -> Array:
    """Return rows minus their centre, float64."""
    place = scratch.array("centre", rows.shape[1:])
    out = scratch.array("centred", rows.shape)
    if centre is not None and not centre.any():
        np.copyto(out, rows)
        return out
    if centre is None:
        median_row(rows, scratch, place)
        # Widened first, then subtracted in place: faster than a subtraction that casts as it goes.
        np.copyto(out, rows)
        return np.subtract(out, place, out=out)
    place[...] = 0.0
    for index in np.flatnonzero(centre):
        np.add(place, np.multiply(rows[index], centre[index], out=out[0], dtype=np.float64), out=place)
    return np.subtract(rows, place, out=out)


def _may_overflow(source: TileSource) -> bool:
    """Tell whether elements may square to infinity or to nothing: float32 and narrower never do."""
    return any(tile.dtype is DType.FLOAT64 for tile in source.tiles)


def _units(source: TileSource, work: Callable[[Array, Scratch], Array], threads: int | None) -> Array:
    """Return the largest power of two in each row's largest element; the typical one for rows without any."""
    largest = np.zeros(len(source.sites))
    for part in gather_columns(source, work, threads):
        np.maximum(largest, part, out=largest)
    # The difference of two numbers may be beyond float64; what is infinitely far is as far as can be.
    largest = np.minimum(largest, np.finfo(np.float64).max)
    if not largest.any():
        return np.ones(len(source.sites))
    units: Array = np.ldexp(1.0, np.frexp(np.where(largest > 0, largest, np.median(largest[largest > 0])))[1] - 1)
    return units
