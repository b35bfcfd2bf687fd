"""Tiles: the columns in which every rule works.

A tile is a run of elements of one dtype that lies at the same place in every site's flat buffer. Sites are in name
order, whatever order their updates came in, so sums are the same bytes every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.names import SiteName
    from federation.tensors import DType, TensorSchema

TILE_ELEMENTS = 1 << 18
"""1 MiB of float32, 2 MiB of float64. A quarter of it stays in a core's cache, but what is then done once for each tile
costs more than the cache saves."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A run of elements: `dtype`, byte `offset` in the flat buffer, number of `elements`."""

    dtype: DType
    offset: int
    elements: int

    @property
    def nbytes(self) -> int:
        """Bytes of the run in its own dtype."""
        return self.elements * self.dtype.itemsize


def part_of(tile: Tile, elements: slice) -> Tile:
    """Return a run of a tile's elements; the slice may end beyond the tile."""
    start, stop, _ = elements.indices(tile.elements)
    return Tile(dtype=tile.dtype, offset=tile.offset + start * tile.dtype.itemsize, elements=stop - start)


class TileSource(Protocol):
    """The updates of a round as a rule may see them.

    Attributes:
        sites: names, ascending.
        weights: weight of each site, in the same order: finite, 0 or more, not all 0. Not normalised.
        tiles: the tiles in buffer order; together they cover each float element, or each other element, once.
    """

    @property
    def sites(self) -> Sequence[SiteName]:
        """Names, ascending."""
        ...

    @property
    def weights(self) -> Sequence[float]:
        """Weight of each site."""
        ...

    @property
    def tiles(self) -> Sequence[Tile]:
        """Tiles in buffer order."""
        ...

    def read(self, site: int, tile: Tile, out: Array) -> None:
        """Read one site's elements of a tile, or of a part of one. Several threads may at once.

        Args:
            site: index into `sites`.
            tile: one of `tiles`, or what `part_of` makes of it.
            out: one-dimensional, contiguous, ``tile.elements`` of the tile's dtype; overwritten.
        """
        ...


def tiles_of(schema: TensorSchema, *, floats: bool, tile_elements: int = TILE_ELEMENTS) -> tuple[Tile, ...]:
    """Cut the flat buffer of `schema` into tiles.

    Args:
        schema: layout of the buffer.
        floats: tiles of the float dtypes (True), or of the integers and booleans (False).
        tile_elements: most elements of a tile.
    """
    tiles: list[Tile] = []
    for segment in schema.segments:
        if segment.dtype.is_float is not floats:
            continue
        for start in range(0, segment.elements, tile_elements):
            tiles.append(
                Tile(
                    dtype=segment.dtype,
                    offset=segment.offset + start * segment.dtype.itemsize,
                    elements=min(tile_elements, segment.elements - start),
                )
            )
    return tuple(tiles)


class ArrayTiles:
    """A `TileSource` over flat buffers held in memory: for tests, simulation and small payloads.

    Args:
        schema: layout of every buffer.
        buffers: flat buffer of each site, in any order.
        weights: weight of each site.
        floats: as for `tiles_of`.
        tile_elements: as for `tiles_of`.
    """

    def __init__(
        self,
        schema: TensorSchema,
        buffers: dict[SiteName, bytes | bytearray],
        weights: dict[SiteName, float],
        *,
        floats: bool = True,
        tile_elements: int = TILE_ELEMENTS,
    ) -> None:
        self.sites = sorted(buffers)
        self.weights = [weights[site] for site in self.sites]
        self.tiles = tiles_of(schema, floats=floats, tile_elements=tile_elements)
        self._buffers = [buffers[site] for site in self.sites]

    def read(self, site: int, tile: Tile, out: Array) -> None:
        """Read one site's elements of a tile."""
        view = memoryview(self._buffers[site])[tile.offset : tile.offset + tile.nbytes]
        out[...] = np.frombuffer(view, dtype=tile.dtype.numpy)
