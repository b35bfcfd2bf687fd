r"""How suspicious each site's update looks beside the others: three numbers per site and round. Pure.

Of updates Δ_i and what a rule made of them, a:

1. ``distance``: ‖Δ_i − a‖₂.
2. ``cosine``: ⟨Δ_i, a⟩ / (‖Δ_i‖ ‖a‖), −1 to 1; 0 where one of them has no length, −1 where ‖Δ_i‖
   is too long for float64, so that nobody evades by length.
3. ``krum``: the sum of the n − f − 2 smallest ‖Δ_i − Δ_j‖², with f the plan's ``byzantine``. Blanchard, El Mhamdi,
   Guerraoui, Stainer: "Machine Learning with Adversaries", NeurIPS 2017, section 4. Absent with fewer than f + 3
   updates, and beyond `KRUM_SITES` of them unless the plan's quarantine asks for it: it costs n²/2 per element.

All three come from one Gram matrix of the rows Δ_i − a and a, taken piece by piece in float32 (float64 where the
updates are, or a piece overflows) and summed in float64. Of most pieces it is made of products of the Δ_i and a as they
are, ⟨Δ_i − a, Δ_j − a⟩ = ⟨Δ_i, Δ_j⟩ − ⟨Δ_i, a⟩ − ⟨Δ_j, a⟩ + ⟨a, a⟩. Where an update is so close to a that this would
cancel (`APART`), the rows are centred first, which takes twice as long: so no distance to a is off by more than some
3e-6 of itself, be the updates as nearly equal as float32 allows. What arithmetic cannot tell from 0 is 0: a
distance to a below `ROUNDING` of the median length of the updates, a squared distance between two updates below
`PAIR_ROUNDING` of the larger of their own to a. Neither measure is one site's to choose: one huge update does not make
the others' scores 0. What overflows counts as the largest number there is: a score is always finite. The scores decide
nothing; what they may lead to is `federation.rounds.quarantine`'s to say.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.aggregation.columns import columns_of_piece
from federation.aggregation.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from federation.aggregation.tiles import Array
    from federation.names import SiteName

DISTANCE, COSINE, KRUM = "distance", "cosine", "krum"
RULE_WEIGHT = "rule_weight"
"""Beside the scores: how much the update counted (`rule.RuleReport.counted`): what the rule multiplied it by, where it
works so, or its trust, where all are brought to one length first (fltrust)."""
KRUM_SITES = 64
"""Up to here the pairs cost less than reading the updates does; twice as many sites would cost four times as much."""
ROUNDING = 1e-6
PAIR_ROUNDING = 5e-4
"""Of blocks of thousands of float32 products of rows that are not centred: twice the worst that was found of equal
updates, those whose elements all have one size."""
APART = 1 / 16
"""Least squared distance of an update to a, over the larger squared length of the two, that uncentred products tell."""
_PRODUCT_ROWS, _PRODUCT_SIZE = 32, 32 * 256 * 32
"""Rows of one product, and its multiplications: the most that OpenBLAS leaves to the calling thread. Other threads of
ours have the other cores, and sums are the same bytes for any number of them."""
_DOT_COLUMNS = 1 << 13
"""Of one dot product, for the same reason."""
_BLOCK_BYTES, _BLOCK_COLUMNS = 1 << 20, 1 << 16
"""Of centred rows: they stay in a core's cache from the subtraction to the products."""
_LARGEST = float(np.finfo(np.float64).max)

Scores = dict[str, float]


class SiteScores:
    """Takes in tiles of all updates with the aggregate's; gives the scores at the end.

    Args:
        sites: whose updates, in the order of the rows.
        byzantine: f.
        needs_krum: give the Krum score however many sites there are.
    """

    def __init__(self, sites: Sequence[SiteName], *, byzantine: int = 0, needs_krum: bool = False) -> None:
        self._sites = list(sites)
        self._neighbours = len(sites) - byzantine - 2
        self._has_pairs = self._neighbours >= 1 and (needs_krum or len(sites) <= KRUM_SITES)
        size = len(sites) + 1
        self._columns = max(_power_of_two(min(_BLOCK_COLUMNS, _BLOCK_BYTES // (4 * size))), 256)
        self._piece = _power_of_two(min(_PRODUCT_SIZE // min(size, _PRODUCT_ROWS) ** 2, _DOT_COLUMNS))
        self._scratch = Scratch()
        # With pairs the Gram matrix, lower triangle; without them its diagonal and its last row.
        self._sums = np.zeros((size, size) if self._has_pairs else (2, size))

    def add(self, rows: Array, aggregate: Array) -> None:
        """Take in one tile.

        Args:
            rows: (n, elements), floats; one update's elements in each row.
            aggregate: the rule's elements at the same place, float64.
        """
        step = columns_of_piece(len(self._sites))
        dtype = np.dtype(np.float64 if rows.dtype == np.float64 else np.float32)
        for start in range(0, aggregate.size, step):
            piece = slice(start, start + step)
            values = aggregate[piece]
            own = self._scratch.array("rows", (len(rows) + 1, values.size), dtype)
            np.copyto(own[:-1], rows[:, piece])
            self.take(self.products(own, values, self._scratch))

    def products(self, rows: Array, aggregate: Array, scratch: Scratch) -> Array:
        """Return what one piece of a tile (`columns_of_piece`) adds to the sums, in any thread.

        Args:
            rows: (n + 1, elements), float32 or float64; one update's elements in each row but the last, which is
                overwritten: next to the updates the aggregate takes part in one product.
            aggregate: as for `add`.
            scratch: for who calls.

        Returns:
            (n + 1, n + 1), lower triangle, where there are pairs; else (2, n + 1). Float64.
        """
        # What overflows is told by the score, not by a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            products = self._plain(rows, aggregate)
            return self._centred(rows[:-1], aggregate, scratch) if products is None else products

    def take(self, products: Array) -> None:
        """Take in what `products` returned for one piece; in order."""
        with np.errstate(over="ignore", invalid="ignore"):
            self._sums += products

    def _plain(self, rows: Array, center: Array) -> Array | None:
        """Return the sums of a piece from products of rows that are not centred; None if they cannot tell."""
        np.copyto(rows[-1], center, casting="same_kind")
        found = self._sums_of(rows)
        lengths, along, middle = self._diagonal(found)[:-1].copy(), found[-1, :-1].copy(), float(found[-1, -1])
        distances = lengths - 2 * along + middle
        # Also where something is no number.
        if not (distances >= APART * np.maximum(lengths, middle)).all() or not math.isfinite(distances.sum()):
            return None
        found[-1, :-1] = along - middle
        if self._has_pairs:
            found[:-1, :-1] += middle - along[:, None] - along
        else:
            found[0, :-1] = distances
        return found

    def _centred(self, rows: Array, center: Array, scratch: Scratch) -> Array:
        """Return the sums of a piece from products of centred rows."""
        found = np.zeros(self._sums.shape)
        for start in range(0, center.size, self._columns):
            block = slice(start, start + self._columns)
            products = self._products(rows[:, block], center[block], rows.dtype, scratch)
            if not np.isfinite(products).all():
                products = self._products(rows[:, block], center[block], np.dtype(np.float64), scratch)
            found += products
        return found

    def _products(self, rows: Array, center: Array, dtype: np.dtype[Any], scratch: Scratch) -> Array:
        block = scratch.array("block", (len(self._sites) + 1, center.size), dtype)
        np.copyto(block[-1], center, casting="same_kind")
        np.subtract(rows, block[-1], out=block[:-1], dtype=dtype)
        return self._sums_of(block)

    def _sums_of(self, rows: Array) -> Array:
        """Return the sums that the products of rows make, the last one's among them."""
        found = np.zeros(self._sums.shape)
        for pieces in self._pieces(rows):
            found += _gram(pieces) if self._has_pairs else _last_row(pieces)
        return found

    def _diagonal(self, sums: Array) -> Array:
        return np.diag(sums) if self._has_pairs else sums[0]

    def _pieces(self, rows: Array) -> Iterator[Array]:
        """Yield rows cut into pieces for one product each, (rows, pieces, columns): the whole ones, then the rest."""
        columns = rows.shape[1]
        if columns <= _DOT_COLUMNS and columns * min(len(rows) - 1, _PRODUCT_ROWS) ** 2 <= _PRODUCT_SIZE:
            yield rows[:, None]
            return
        whole = columns // self._piece * self._piece
        for part in (rows[:, :whole], rows[:, whole:]):
            if part.size:
                yield part.reshape(len(part), -1, min(self._piece, part.shape[1]))

    def finish(self) -> dict[SiteName, Scores]:
        """Return each site's scores; none for fewer than 2 updates, which have nothing to differ from."""
        if len(self._sites) < 2:
            return {}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            squares, along = self._diagonal(self._sums)[:-1], self._sums[-1, :-1]
            center = self._sums[-1, -1]
            lengths = np.sqrt(np.maximum(squares + 2 * along + center, 0.0))
            distances = np.sqrt(squares)
            distances[distances <= ROUNDING * _middle(lengths)] = 0.0
            cosines = (along + center) / (lengths * math.sqrt(center))
            if math.isfinite(center):
                cosines[~np.isfinite(lengths)] = -1.0
            pairs = self._pairs(squares) if self._has_pairs else None
        rows = zip(self._sites, distances.tolist(), cosines.tolist(), strict=True)
        found = {site: {DISTANCE: _finite(distance), COSINE: _cosine(cosine)} for site, distance, cosine in rows}
        if pairs is not None:
            for scores, krum in zip(found.values(), pairs.tolist(), strict=True):
                scores[KRUM] = _finite(krum)
        return found

    def _pairs(self, squares: Array) -> Array:
        sums = self._sums[:-1, :-1]
        lower = np.arange(len(sums))
        products = np.where(lower[:, None] >= lower, sums, sums.T)
        between = squares[:, None] + squares - 2 * products
        larger = np.maximum(squares[:, None], squares)
        between[(between <= PAIR_ROUNDING * larger) & np.isfinite(larger)] = 0.0
        np.fmin(between, np.inf, out=between)  # what is no number counts as infinite
        between[lower, lower] = np.inf
        between.sort(axis=1)
        return np.asarray(between[:, : self._neighbours].sum(axis=1))


def _gram(pieces: Array) -> Array:
    """Return the lower triangle of the Gram matrix of rows cut into pieces, (rows, pieces, columns).

    What stands above the diagonal is of no meaning.
    """
    size = len(pieces)
    found = np.zeros((size, size))
    stack = pieces.swapaxes(0, 1)
    for first in range(0, size, _PRODUCT_ROWS):
        left = slice(first, min(first + _PRODUCT_ROWS, size))
        for second in range(0, first, _PRODUCT_ROWS):
            right = slice(second, second + _PRODUCT_ROWS)
            found[left, right] = _product(stack[:, left], stack[:, right])
        # Of rows by themselves the library makes a symmetric product, far slower here: so all but the first by all but
        # the last, and these two by hand.
        last = left.stop - 1
        found[first + 1 : left.stop, first:last] = _product(stack[:, first + 1 : left.stop], stack[:, first:last])
        rows = [first, last][: left.stop - first]
        ends = pieces[first : left.stop : max(last - first, 1)]
        found[rows, rows] = _squares(ends)
    return found


def _product(left: Array, right: Array) -> Array:
    return np.asarray(np.matmul(left, right.swapaxes(1, 2)).sum(axis=0, dtype=np.float64))


def _squares(pieces: Array) -> Array:
    """Return the diagonal of the Gram matrix; argument as `_gram`."""
    return np.asarray(np.vecdot(pieces, pieces).sum(axis=1, dtype=np.float64))


def _last_row(pieces: Array) -> Array:
    """Return the diagonal of the Gram matrix and its last row; argument as `_gram`."""
    products = np.stack([np.vecdot(pieces, pieces), np.vecdot(pieces, pieces[-1])])
    return np.asarray(products.sum(axis=2, dtype=np.float64))


def _power_of_two(most: int) -> int:
    return int(1 << (most.bit_length() - 1))


def _middle(values: Array) -> float:
    """Return the lower median, with what is no number as the largest; 0 if it is not finite."""
    middle = float(np.sort(values)[(len(values) - 1) // 2])  # NaN sorts last
    return middle if math.isfinite(middle) else 0.0


def _finite(value: float) -> float:
    return value if value <= _LARGEST else _LARGEST  # also where it is no number


def _cosine(value: float) -> float:
    return min(max(value, -1.0), 1.0) if math.isfinite(value) else 0.0
