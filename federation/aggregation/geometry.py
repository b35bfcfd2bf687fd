"""How far the vectors of a round lie from one another, in one pass and in arithmetic that a hostile one cannot spoil.

1. Everything follows from one Gram matrix G_ij = ⟨v_i - c, v_j - c⟩ in float64, summed tile by tile in order. Where two
   vectors of float32 or less are not nearly equal, c = 0 is as good as any: their products are exact in float64. Else
   the centre is the coordinate-wise median: between honest values whatever a minority sends. Never is it one update: a
   huge one would cancel the distances of the honest ones away.
2. Products are taken in blocks too small for the linear algebra below to split over threads of its own.
3. Where elements are float64 they may square to infinity or to nothing: each v_i - c is then measured in a unit of its
   own, a power of two near its largest element, found in a pass before.
4. Two units may be farther apart than float64 reaches. Distances, of which the far ones need only be far, take what is
   beyond a cap to be at it. What a vector is multiplied by follows from its true length, whatever that is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.columns import gather_columns
from federation.aggregation.mixing import BLOCK_ROWS, BLOCK_SIZE
from federation.aggregation.sorting import median_row
from federation.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.aggregation.scratch import Scratch
    from federation.aggregation.tiles import Array, TileSource

_CANCELLED = 1e-9
"""Of a squared distance to the squared length: below it, less than seven digits of the distance are left."""
_FARTHEST = 1e100
"""How much farther than usual a vector is taken to be at most: its square is finite, and nothing is near it."""
_MOST_POWER = 1000
"""Of two, of a unit that is not squared: the length of a vector of any number of elements in it is finite."""
_LEAST_POWER = -500
"""Of a unit that something finite is divided by twice: the centre is no nearer than that."""
_NOTHING = -10_000
"""Power of two of a norm of 0: below that of any other."""


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
        found: Array = np.minimum(np.ldexp(1.0, np.minimum(self.powers(), _MOST_POWER)), _FARTHEST)
        return found

    def powers(self, unit: float | None = None) -> Array:
        """Return log₂(u_i / unit), integers; with the typical unit by default."""
        found: Array = np.frexp(self.units)[1] - np.frexp(self.typical if unit is None else unit)[1]
        return found

    def bounded(self, unit: float | None = None) -> tuple[Array, Array]:
        """Return r_i = u_i / unit within bounds that arithmetic stands, and s_i = r_i / (u_i / unit), 1 or less.

        A coefficient found for a vector beyond the upper bound as if it were at it is that of the vector itself when
        multiplied by s_i. One below the lower bound, and so next to nothing, keeps its coefficient.
        """
        powers = self.powers(unit)
        scales: Array = np.ldexp(1.0, np.clip(powers, _LEAST_POWER, _MOST_POWER))
        return scales, np.ldexp(1.0, np.minimum(_MOST_POWER - powers, 0))

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


@dataclass(frozen=True, slots=True)
class Norms:
    """Norms that may be beyond any number: ‖v_i‖ = m_i 2^e_i.

    Attributes:
        mantissas: m, float64, (n,): at least 1/2 and below 1, or 0.
        powers: e, integers, (n,): least of all where m is 0.
    """

    mantissas: Array
    powers: Array

    def largest(self, rank: int) -> tuple[float, int]:
        """Return mantissa and power of the norm that `rank` others come before, the largest first."""
        place = np.lexsort((self.mantissas, self.powers))[-1 - rank]
        return float(self.mantissas[place]), int(self.powers[place])

    def shrinking(self, mantissa: float, power: int) -> Array:
        """Return min(1, c / ‖v_i‖) for c = mantissa · 2^power; what is no normal number of float64 is rounded to 0."""
        ratios = np.divide(mantissa, self.mantissas, out=np.ones(len(self.powers)), where=self.mantissas > 0)
        # A ratio of mantissas is above 1/2: twice that, or more, is 1 in any case.
        found: Array = np.minimum(np.ldexp(ratios, np.clip(power - self.powers, -2000, 1)), 1.0)
        found[found < np.finfo(np.float64).tiny] = 0.0
        return found


def norms(source: TileSource, threads: int | None = None) -> Norms:
    """Return the norm of every vector.

    Raises:
        ValueError: there is no site.
    """
    units = np.ones(len(source.sites))
    if _may_overflow(source):
        units = _units(source, lambda rows, _: _largest_elements(rows), threads)
    squares = np.zeros(len(source.sites))
    for part in gather_columns(source, functools.partial(_squares, units=units), threads):
        squares += part
    mantissas, powers = np.frexp(np.sqrt(squares))
    powers = powers + np.frexp(units)[1] - 1
    return Norms(mantissas, np.where(mantissas > 0, powers, _NOTHING))


def products(rows: Array) -> Array:
    """Return rows @ rows.T, in blocks that no linear algebra splits among threads; all float64."""
    count, columns = rows.shape
    out = np.empty((count, count))
    # Half of the rows at a time against other rows: of a matrix and its own transpose the library makes a symmetric
    # product, which is slower for so few rows.
    size = min((count + 1) // 2, BLOCK_ROWS)
    step = min(BLOCK_SIZE // (size * min(count, 2 * BLOCK_ROWS)), 1024) // 64 * 64
    whole = columns // step * step
    stacked = rows[:, :whole].reshape(count, -1, step).transpose(1, 0, 2)
    for i in range(0, count, size):
        for j in range(0, count, 2 * BLOCK_ROWS):
            left, right = slice(i, i + size), slice(j, j + 2 * BLOCK_ROWS)
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
