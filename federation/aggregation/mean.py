r"""The weighted mean, as in FedAvg: Σ p_i Δ_i / Σ p_i.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, algorithm 1 with p_i = n_i. Sums run in float64 over sites in name order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.aggregation.ahead import TilesAhead
from federation.aggregation.linear import weighted_sum
from federation.aggregation.mixing import MixedTiles
from federation.aggregation.rule import AggregationRule, RuleContext, RuleReport

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from federation.aggregation.tiles import Array, Tile, TileSource


def normalised(weights: Sequence[float]) -> list[float]:
    """Return p_i / Σ p_j.

    Raises:
        ValueError: there is none, one is negative or not finite, or all are 0.
    """
    total = math.fsum(weights)
    if not weights or not math.isfinite(total) or total <= 0 or min(weights) < 0:
        raise ValueError(f"weights must be finite, 0 or more and not all 0, got {list(weights)}")
    return [weight / total for weight in weights]


class WeightedMean(AggregationRule):
    """The weighted mean of all sites, element by element.

    Stands no hostile site: one is enough to put it anywhere.

    Formula: out = Σ p_i v_i / Σ p_i, with p_i the examples of site i (or 1, as ``weighting`` says).
    """

    name: ClassVar[str] = "mean"
    title: ClassVar[str] = "Weighted mean"
    source: ClassVar[str] = "arXiv:1602.05629, algorithm 1"
    condition: ClassVar[str] = "f = 0"

    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        shares = normalised(source.weights)
        if isinstance(source, MixedTiles):
            weights = yield from weighted_sum(source, np.array(shares), context)
        else:
            yield from _sums(source, shares)
            weights = dict(zip(source.sites, shares, strict=True))
        return RuleReport(weights=weights, note="the weighted mean")


def _sums(source: TileSource, shares: Sequence[float]) -> Iterator[tuple[Tile, Array]]:
    largest = max((tile.elements for tile in source.tiles), default=0)
    total = np.empty(largest, dtype=np.float64)
    term = np.empty(largest, dtype=np.float64)
    for tile, rows in _rows(source, largest):
        sum_, product = total[: tile.elements], term[: tile.elements]
        for site, (share, row) in enumerate(zip(shares, rows, strict=True)):
            target = product if site else sum_
            # Widen first, then multiply in place: twice as fast as a multiplication that casts as it goes.
            np.copyto(target, row)
            np.multiply(target, share, out=target)
            if site:
                np.add(sum_, product, out=sum_)
        yield tile, sum_


def _rows(source: TileSource, largest: int) -> Iterator[tuple[Tile, Iterable[Array]]]:
    """Yield each tile with the sites' elements, one after the other if the source does not have them together."""
    if isinstance(source, TilesAhead):
        yield from source.rows()
        return
    raw = np.empty(largest * 8, dtype=np.uint8)
    for tile in source.tiles:
        yield tile, _read_in_turn(source, tile, raw[: tile.nbytes].view(tile.dtype.numpy))


def _read_in_turn(source: TileSource, tile: Tile, row: Array) -> Iterator[Array]:
    for site in range(len(source.sites)):
        source.read(site, tile, row)
        yield row
