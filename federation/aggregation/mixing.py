"""Vectors that are linear combinations of the sites': what a pre-aggregation hands to a rule, never held whole.

A `MixedTiles` is the source it mixes and one small matrix; a rule's pass reads the sites' tiles and mixes columns in
the worker that needs them. Mixtures of mixtures are one matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.aggregation.tiles import Array, Tile, TileSource
    from federation.names import SiteName

_BLOCK_ROWS, _BLOCK_COLUMNS = 32, 256
"""A product of 32 x 32 by 32 x 256: none larger, lest OpenBLAS split it over threads of its own."""


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

    def mix(self, rows: Array, out: Array) -> Array:
        """Fill `out`, float64 of shape (vectors, columns), with the mixture of the sites' columns."""
        if self._scales is not None:
            np.multiply(rows, self._scales[:, None], out=out)
            return out
        wide = np.empty((_BLOCK_ROWS, _BLOCK_COLUMNS))
        out[...] = 0.0
        for start in range(0, rows.shape[1], _BLOCK_COLUMNS):
            columns = slice(start, start + _BLOCK_COLUMNS)
            for j in range(0, rows.shape[0], _BLOCK_ROWS):
                block = rows[j : j + _BLOCK_ROWS, columns]
                right = wide[: block.shape[0], : block.shape[1]]
                np.copyto(right, block)
                for i in range(0, out.shape[0], _BLOCK_ROWS):
                    left = self.mixing[i : i + _BLOCK_ROWS, j : j + _BLOCK_ROWS]
                    out[i : i + _BLOCK_ROWS, columns] += left @ right
        return out


def unmixed(source: TileSource, coefficients: Array) -> tuple[TileSource, Array]:
    """Return the sites' own source, and what Σ_i coefficients_i (vector i) multiplies each site's vector by."""
    if isinstance(source, MixedTiles):
        return source.source, coefficients @ source.mixing
    return source, coefficients


def _is_diagonal(matrix: Array) -> bool:
    if matrix.shape[0] != matrix.shape[1]:
        return False
    return bool((matrix == np.diag(np.diagonal(matrix))).all())
