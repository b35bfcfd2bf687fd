"""Vectors of a method, read and written in the order of the parameters they belong to.

A vector has float32 where the parameters are half precision (`TensorSchema.widened`). With that, the canonical order
of its tensors may be another than theirs: a bfloat16 ``a`` lies behind a float32 ``b``, and before it once widened.
Whatever walks parameters and vectors side by side sees both in the order of the parameters; where the orders agree,
nothing is in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.aggregation.tiles import Tile
from federation.storage.tile_streams import Places, Scattered

if TYPE_CHECKING:
    from federation.storage.disk import Buffer, Readable
    from federation.storage.memory import PlacedSink
    from federation.tensors import TensorSchema


def widened(tile: Tile, offset: int) -> Tile:
    """Return the tile of a vector beside a tile of the parameters, at its place among all of them."""
    return Tile(dtype=tile.dtype.widened, offset=offset, elements=tile.elements)


def widened_tiles(tiles: tuple[Tile, ...]) -> tuple[Tile, ...]:
    """Return the tiles of a vector beside those of the parameters, which are all of them in order."""
    wide, offset = [], 0
    for tile in tiles:
        wide.append(widened(tile, offset))
        offset += wide[-1].nbytes
    return tuple(wide)


def in_order(vector: Readable, parameters: TensorSchema) -> Readable:
    """Return a vector as a buffer in the order of the parameters.

    Args:
        vector: flat buffer of ``parameters.widened``.
        parameters: schema of the parameters.
    """
    return vector if _is_same_order(parameters) else Scattered(vector, _places(parameters), "a vector")


def append_in_order(sink: PlacedSink, parameters: TensorSchema) -> OrderedSink:
    """Return what writes a vector whose elements come in the order of the parameters."""
    return OrderedSink(sink, None if _is_same_order(parameters) else _places(parameters))


class OrderedSink:
    """Writes a vector in the order of the parameters; implements `ByteSink`.

    Args:
        sink: of the vector's own schema; finished by the caller.
        places: where the pieces go; None: where they come.
    """

    def __init__(self, sink: PlacedSink, places: Places | None) -> None:
        self._sink = sink
        self._places = places
        self._position = 0

    def append(self, view: Buffer) -> None:
        """Write the next bytes.

        Raises:
            ValueError: beyond the end.
            StorageError: the disk failed.
        """
        if self._places is None:
            self._sink.append(view)
            return
        piece = memoryview(view).cast("B")
        for first, place, nbytes in self._places.of(self._position, piece.nbytes):
            self._sink.write_at(place, piece[first : first + nbytes])
        self._position += piece.nbytes


def _places(parameters: TensorSchema) -> Places:
    """Return where the tensors of a vector lie, in the order of the parameters."""
    wide = parameters.widened
    return Places((wide.offsets[spec.name], wide[spec.name].nbytes) for spec in parameters)


def _is_same_order(parameters: TensorSchema) -> bool:
    return [spec.name for spec in parameters] == [spec.name for spec in parameters.widened]
