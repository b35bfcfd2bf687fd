"""Tiles that are looked at while a rule has them: all of them, in order, and the same to the bit in any threads."""

from __future__ import annotations

import numpy as np
import pytest

from federation.aggregation import columns
from federation.aggregation.mean import WeightedMean
from federation.aggregation.median import Median
from federation.aggregation.rule import RuleContext
from federation.aggregation.scratch import Scratch
from federation.aggregation.tiles import Array, ArrayTiles
from federation.aggregation.watching import WatchedTiles
from federation.names import SiteName
from federation.tensors import DType, TensorSchema, TensorSpec

SITES = [SiteName(name) for name in "abc"]
SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="h", dtype=DType.FLOAT16, shape=(4097,)),
        TensorSpec(name="v", dtype=DType.FLOAT64, shape=(2049,)),
        TensorSpec(name="w", dtype=DType.FLOAT32, shape=(30_000,)),
    ]
)


def source() -> ArrayTiles:
    """Tiles that differ in size and kind, some of more than one piece once pieces are small."""
    draw = np.random.default_rng(5)
    buffers: dict[SiteName, bytes | bytearray] = {}
    for site in SITES:
        parts = [draw.normal(size=row.elements).astype(row.dtype.numpy).tobytes() for row in SCHEMA.segments]
        buffers[site] = b"".join(parts)
    return ArrayTiles(SCHEMA, buffers, dict(zip(SITES, (1.0, 2.0, 3.0), strict=True)), tile_elements=3000)


def copy(rows: Array, result: Array, scratch: Scratch) -> Array:
    rows[-1] = 0  # is its own
    return np.vstack([rows[:-1], result])


@pytest.mark.parametrize("threads", [1, 2, 4, 9])
def test_the_mean_shows_each_piece_once_in_order_and_is_the_same_to_the_bit(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = source()
    whole = [(tile, values.tobytes()) for tile, values in WeightedMean().combine(plain, RuleContext(threads=1))]
    monkeypatch.setattr(columns, "_PIECE_BYTES", 1)  # pieces of 1024 columns
    seen: list[Array] = []
    watched = WatchedTiles(plain, copy, seen.append)
    found = []
    for count, (tile, values) in enumerate(WeightedMean().combine(watched, RuleContext(threads=threads)), 1):
        found.append((tile, values.tobytes()))
        assert watched.has_seen(count) and not watched.has_seen(count + 1)
        values.fill(np.nan)  # the rule's array may be overwritten
    assert found == whole
    expected = []
    for tile, result in whole:
        rows = columns.read_rows(plain, tile, Scratch())
        expected.append(np.vstack([rows, np.frombuffer(result)]))
    assert np.hstack(seen).tobytes() == np.hstack(expected).tobytes()


def test_what_a_look_raises_is_raised() -> None:
    def look(rows: Array, result: Array, scratch: Scratch) -> Array:
        raise MemoryError("no room")

    watched = WatchedTiles(source(), look, lambda found: None)
    with pytest.raises(MemoryError, match="no room"):
        list(WeightedMean().combine(watched, RuleContext(threads=3)))


def test_a_rule_that_may_overwrite_what_it_reads_shows_nothing() -> None:
    plain = source()
    watched = WatchedTiles(plain, copy, lambda found: pytest.fail("it was looked at"))
    found = [values.tobytes() for _, values in Median().combine(watched)]
    assert found == [values.tobytes() for _, values in Median().combine(plain)]
    assert not watched.has_seen(1)
