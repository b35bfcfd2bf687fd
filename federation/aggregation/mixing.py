"""Vectors that are linear combinations of the sites': what a pre-aggregation hands to a rule, never held whole.

A `MixedTiles` is the source it mixes and one small matrix; a rule's pass reads the sites' tiles and mixes columns in
the worker that needs them. Mixtures of mixtures are one matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.names import SiteName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.aggregation.rule import StateReader
    from federation.aggregation.tiles import Array, Tile, TileSource

BLOCK_ROWS, BLOCK_SIZE = 32, 32 * 256 * 32
"""Rows of one product, and its multiplications: the most that OpenBLAS leaves to the calling thread."""


class MixedTiles:
    """Σ_j mixing_ij v_j for each row i of `mixing`, float64. A `TileSource` for rules, read through their passes only.

    Args:
        source: v_1 to v_n; if they are mixed themselves, the matrices are multiplied.
        mixing: float64, (vectors, n).
        sites: a name for each vector, ascending.
        weights: weight of each, for the mean; None: as of the source, where each vector is a site's own.

    Attributes:
        source: the unmixed source.
        mixing: float64, (vectors, sites of `source`).
    """

    def __init__(
        self,
        source: TileSource,
        mixing: Array,
        sites: Sequence[SiteName] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.sites = source.sites if sites is None else sites
        self.weights = source.weights if weights is None else weights
        self.tiles = source.tiles
        self.source: TileSource = source.source if isinstance(source, MixedTiles) else source
        self.mixing: Array = mixing @ source.mixing if isinstance(source, MixedTiles) else mixing
        self._scales = np.diagonal(self.mixing).copy() if _is_diagonal(self.mixing) else None

    def read(self, site: int, tile: Tile, out: Array) -> None:
        """Fill `out`, float64, with one vector's tile."""
        raw = np.empty(tile.elements, tile.dtype.numpy)
        out[...] = 0.0
        for index, factor in enumerate(self.mixing[site]):
            if factor:
                self.source.read(index, tile, raw)
                out += factor * raw.astype(np.float64)

    def mix(self, rows: Array, out: Array, wide: Array) -> Array:
        """Fill `out`, float64 of shape (vectors, columns), with the mixture of the sites' columns.

        Args:
            rows: the sites' columns.
            out: overwritten.
            wide: scratch, float64, of the shape of `rows`.
        """
        if self._scales is not None:
            np.multiply(rows, self._scales[:, None], out=out)
            return out
        np.copyto(wide, rows)
        (vectors, columns), sites = out.shape, len(wide)
        step = min(BLOCK_SIZE // (min(vectors, BLOCK_ROWS) * min(sites, BLOCK_ROWS)), 1024)
        whole = columns // step * step
        for some, width in ((slice(0, whole), step), (slice(whole, columns), columns - whole)):
            if width and some.stop > some.start:
                left = wide[:, some].reshape(sites, -1, width).transpose(1, 0, 2)
                self._mix_pieces(left, out[:, some].reshape(vectors, -1, width).transpose(1, 0, 2))
        return out

    def _mix_pieces(self, pieces: Array, out: Array) -> None:
        """Mix pieces (pieces, sites, columns) into `out`, a view (pieces, vectors, columns), block by block."""
        for i in range(0, out.shape[1], BLOCK_ROWS):
            target = out[:, i : i + BLOCK_ROWS]
            for j in range(0, pieces.shape[1], BLOCK_ROWS):
                left = self.mixing[i : i + BLOCK_ROWS, j : j + BLOCK_ROWS]
                block = np.matmul(left, pieces[:, j : j + BLOCK_ROWS])
                if j:
                    np.add(target, block, out=target)
                else:
                    np.copyto(target, block)


KEPT = SiteName("(kept)")
"""Name of the vector that a rule kept, where it stands last in a source: no site can have it."""


class _Extended:
    """A source with one more vector. Implements `TileSource`."""

    def __init__(self, source: TileSource, last: StateReader | None) -> None:
        self.sites = [*source.sites, KEPT]
        self.weights = [*source.weights, 0.0]
        self.tiles = source.tiles
        self._source = source
        self._last = last

    def read(self, site: int, tile: Tile, out: Array) -> None:
        if site < len(self._source.sites):
            self._source.read(site, tile, out)
        elif self._last is None:
            out[...] = 0
        else:
            self._last.read(tile, out)


def with_state(source: TileSource, state: StateReader | None) -> TileSource:
    """Return a source, mixed or not, that has a vector kept by the rule as its last; None stands for zero."""
    if not isinstance(source, MixedTiles):
        return _Extended(source, state)
    vectors, sites = source.mixing.shape
    mixing = np.zeros((vectors + 1, sites + 1))
    mixing[:vectors, :sites] = source.mixing
    mixing[vectors, sites] = 1.0
    return MixedTiles(_Extended(source.source, state), mixing, [*source.sites, KEPT], [*source.weights, 0.0])


def unmixed(source: TileSource, coefficients: Array) -> tuple[TileSource, Array]:
    """Return the sites' own source, and what Σ_i coefficients_i (vector i) multiplies each site's vector by."""
    if isinstance(source, MixedTiles):
        return source.source, coefficients @ source.mixing
    return source, coefficients


def by_site(source: TileSource, values: Array) -> dict[SiteName, float]:
    """Return what is a property of each vector, such as how far it is trusted, of each site.

    Args:
        source: mixed or not.
        values: (vectors,), 0 or more; of mixed ones each site gets what its part of them makes, whatever their length.
    """
    if not isinstance(source, MixedTiles):
        return dict(zip(source.sites, values.tolist(), strict=True))
    parts = np.abs(source.mixing)
    sums = parts.sum(axis=1, keepdims=True)
    each = values @ np.divide(parts, sums, out=np.zeros_like(parts), where=sums > 0)
    return dict(zip(source.source.sites, each.tolist(), strict=True))


def _is_diagonal(matrix: Array) -> bool:
    if matrix.shape[0] != matrix.shape[1]:
        return False
    return bool((matrix == np.diag(np.diagonal(matrix))).all())
