"""Tiles read ahead by a thread: the same tiles, looked at in order, each before its memory is used again."""

from __future__ import annotations

import numpy as np
import pytest

from federation.aggregation.ahead import TilesAhead, can_read_ahead
from federation.aggregation.mean import WeightedMean
from federation.aggregation.tiles import Array, ArrayTiles
from federation.names import SiteName
from federation.tensors import DType, TensorSchema, TensorSpec

ELEMENTS = 50
SITES = [SiteName(name) for name in "abc"]


def source(tile_elements: int = 8) -> ArrayTiles:
    """Two dtypes, so that tiles differ in size and kind."""
    schema = TensorSchema.of(
        [
            TensorSpec(name="v", dtype=DType.FLOAT64, shape=(11,)),
            TensorSpec(name="w", dtype=DType.FLOAT32, shape=(ELEMENTS,)),
        ]
    )
    draw = np.random.default_rng(5)
    buffers: dict[SiteName, bytes | bytearray] = {
        site: draw.normal(size=11).astype("<f8").tobytes() + draw.normal(size=ELEMENTS).astype("<f4").tobytes()
        for site in SITES
    }
    weights = dict(zip(SITES, (1.0, 2.0, 3.0), strict=True))
    return ArrayTiles(schema, buffers, weights, tile_elements=tile_elements)


def test_the_mean_of_tiles_read_ahead_is_the_same_to_the_bit_and_each_is_looked_at_once_in_order() -> None:
    plain = source()
    expected = [(tile, values.tobytes()) for tile, values in WeightedMean().combine(plain)]
    seen: list[tuple[bytes, bytes]] = []

    def look(rows: Array, result: Array) -> None:
        seen.append((rows.tobytes(), result.tobytes()))

    found = []
    with TilesAhead(plain, look) as ahead:
        for tile, values in WeightedMean().combine(ahead):
            found.append((tile, values.tobytes()))
            assert ahead.looked_at(values)
            values.fill(np.nan)  # the rule's array may be overwritten
        ahead.finish()
    assert found == expected
    rows = [np.empty((len(SITES), tile.elements), dtype=tile.dtype.numpy) for tile in plain.tiles]
    for tile, block in zip(plain.tiles, rows, strict=True):
        for site, row in enumerate(block):
            plain.read(site, tile, row)
    assert seen == [(block.tobytes(), values) for block, (_, values) in zip(rows, expected, strict=True)]


def test_what_a_look_raises_is_raised_at_the_end_at_the_latest() -> None:
    def look(rows: Array, result: Array) -> None:
        raise MemoryError("no room")

    with TilesAhead(source(tile_elements=64), look) as ahead:
        for _, values in WeightedMean().combine(ahead):
            ahead.looked_at(values)
        with pytest.raises(MemoryError, match="no room"):
            ahead.finish()


def test_a_rule_that_reads_for_itself_has_nothing_looked_at() -> None:
    plain = source()
    with TilesAhead(plain, lambda rows, result: None) as ahead:
        row, same = np.empty(8, "<f8"), np.empty(8, "<f8")
        ahead.read(1, plain.tiles[0], row)
        plain.read(1, plain.tiles[0], same)
        assert row.tobytes() == same.tobytes()
        assert not ahead.looked_at(row)


def test_more_than_a_few_megabytes_a_tile_are_not_held() -> None:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(1 << 16,))])
    buffer = bytes(schema.nbytes)
    for count, can in ((16, True), (17, False)):
        sites = [SiteName(f"s{number}") for number in range(count)]
        held = ArrayTiles(schema, dict.fromkeys(sites, buffer), dict.fromkeys(sites, 1.0))
        assert can_read_ahead(held) is can
