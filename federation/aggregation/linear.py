"""Rules whose result is Σ_i a_i v_i: one pass over the sites that count, whatever came before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from federation.aggregation.columns import fold_columns
from federation.aggregation.mixing import MixedTiles, unmixed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from federation.aggregation.rule import RuleContext
    from federation.aggregation.scratch import Scratch
    from federation.aggregation.tiles import Array, Tile, TileSource
    from federation.names import SiteName


_BLOCK_ELEMENTS = 1 << 17
"""Of float64: what is made of one site's elements stays in a core's cache until it is added."""


class ChosenTiles:
    """Some sites of a source, in its order. Implements `TileSource`."""

    def __init__(self, source: TileSource, chosen: Sequence[int]) -> None:
        self.sites = [source.sites[index] for index in chosen]
        self.weights = [source.weights[index] for index in chosen]
        self.tiles = source.tiles
        self._source = source
        self._chosen = chosen

    def read(self, site: int, tile: Tile, out: Array) -> None:
        """Read one site's elements of a tile."""
        self._source.read(self._chosen[site], tile, out)


def weighted_sum(
    source: TileSource, coefficients: Array, context: RuleContext
) -> Generator[tuple[Tile, Array], None, dict[SiteName, float]]:
    """Yield each tile of Σ_i a_i v_i, and return what each site's own vector was multiplied by.

    Sites whose coefficient is 0 are not read, so nothing they sent can matter.

    Args:
        source: v_1 to v_n, mixed or not.
        coefficients: a, float64, (n,).
        context: how many threads to use.
    """
    base, each = unmixed(source, coefficients)
    chosen = [int(index) for index in np.flatnonzero(each)]
    if chosen:
        yield from fold_columns(ChosenTiles(base, chosen), summing(each[chosen].tolist()), context.threads)
    else:
        yield from _nothing(base)
    return {site: float(factor) for site, factor in zip(base.sites, each, strict=True)}


def common_factor(factors: Sequence[float], dtype: np.dtype[Any]) -> float | None:
    """Return what Σ_i factors_i rows_i multiplies its sum by, once; None: it multiplies each row before it is added.

    Args:
        factors: at least one.
        dtype: of the rows. The sum of float64 rows may be too large for float64 where the result is not.
    """
    return factors[0] if dtype != np.float64 and len(set(factors)) == 1 else None


def summing(factors: Sequence[float]) -> Callable[[Iterable[Array], Array, Scratch], None]:
    """Return what fills a row with Σ_i factors_i rows_i for `fold_columns`: in float64, in the order of the rows."""

    def work(rows: Iterable[Array], out: Array, scratch: Scratch) -> None:
        """Fill `out` from rows of one dtype; a row may lie in the memory of the one before, so each is taken once."""
        rest = iter(rows)
        first = next(rest)
        common = common_factor(factors, first.dtype)
        term = scratch.array("term", (min(_BLOCK_ELEMENTS, out.size),))
        blocks = [slice(start, start + _BLOCK_ELEMENTS) for start in range(0, out.size, _BLOCK_ELEMENTS)]
        for block in blocks:
            np.copyto(out[block], first[block])
            if common is None:
                np.multiply(out[block], factors[0], out=out[block])
        for row, factor in zip(rest, factors[1:], strict=True):
            for block in blocks:
                part, values = out[block], row[block]
                if common is None:
                    # Widened first, then multiplied in place: twice as fast as a multiplication that casts as it goes.
                    np.copyto(term[: part.size], values)
                    values = np.multiply(term[: part.size], factor, out=term[: part.size])
                np.add(part, values, out=part)
        if common is not None:
            for block in blocks:
                np.multiply(out[block], common, out=out[block])

    return work


def only(source: TileSource, chosen: Sequence[int]) -> TileSource:
    """Return some vectors of a source, mixed or not."""
    if isinstance(source, MixedTiles):
        rows = np.zeros((len(chosen), len(source.sites)))
        rows[range(len(chosen)), list(chosen)] = 1.0
        names = [source.sites[index] for index in chosen]
        return MixedTiles(source, rows, names, [source.weights[index] for index in chosen])
    return ChosenTiles(source, chosen)


def mean_coefficients(count: int, chosen: Sequence[int]) -> Array:
    """Return coefficients of the mean of the chosen of `count` vectors."""
    found = np.zeros(count)
    found[list(chosen)] = 1.0 / len(chosen)
    return found


def _nothing(source: TileSource) -> Iterator[tuple[Tile, Array]]:
    for tile in source.tiles:
        yield tile, np.zeros(tile.elements)
