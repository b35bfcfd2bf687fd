"""Results of a rule, taken in pieces: computed ahead where there are many, and the same ones."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.aggregation.mean import WeightedMean
from federation.aggregation.tiles import ArrayTiles, Tile
from federation.names import SiteName
from federation.storage.tile_streams import TileStream
from federation.tensors import DType, TensorSchema, TensorSpec, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.aggregation.tiles import TileSource

ELEMENTS = 1000


def source_of(tile_elements: int) -> ArrayTiles:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(ELEMENTS,))])
    rng = np.random.default_rng(5)
    sites = [SiteName("a"), SiteName("b"), SiteName("c")]
    buffers: dict[SiteName, bytes | bytearray] = {
        site: pack(schema, {"w": rng.standard_normal(ELEMENTS).astype(np.float32)}) for site in sites
    }
    return ArrayTiles(schema, buffers, {site: 1.0 + n for n, site in enumerate(sites)}, tile_elements=tile_elements)


def taken(source: ArrayTiles, most: int) -> np.ndarray[Any, Any]:
    pieces: list[np.ndarray[Any, Any]] = []
    with TileStream(source, WeightedMean().combine(source)) as stream:
        while sum(piece.size for piece in pieces) < ELEMENTS:
            pieces.append(stream.take(most).copy())
    return np.concatenate(pieces)


class Failing:
    """Yields three tiles and then fails."""

    def combine(self, source: TileSource) -> Iterator[tuple[Tile, np.ndarray[Any, Any]]]:
        for tile in source.tiles[:3]:
            yield tile, np.zeros(tile.elements)
        raise ArithmeticError("no fourth")


@pytest.mark.parametrize("most", [7, 10, 1000])
def test_many_tiles_computed_ahead_are_the_same_as_one_tile(most: int) -> None:
    np.testing.assert_array_equal(taken(source_of(10), most), taken(source_of(ELEMENTS), most))


def test_what_a_rule_raises_comes_where_its_tile_would_and_again_after() -> None:
    source = source_of(10)
    with TileStream(source, Failing().combine(source)) as stream:
        for _ in range(3):
            assert stream.take(10).size == 10
        for _ in range(2):
            with pytest.raises(ArithmeticError, match="no fourth"):
                stream.take(10)


def test_a_rule_that_yields_too_few_tiles_is_a_fault() -> None:
    source = source_of(10)
    with TileStream(source, iter([])) as stream, pytest.raises(RuntimeError, match="yielded None"):
        stream.take(10)


def test_no_thread_reads_the_source_after_a_stream_that_was_left_early() -> None:
    source = source_of(10)
    with TileStream(source, WeightedMean().combine(source)) as stream:
        stream.take(10)
        assert any(thread.name == "tiles-ahead" for thread in threading.enumerate())
    assert not any(thread.name == "tiles-ahead" for thread in threading.enumerate())
