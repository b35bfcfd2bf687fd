"""What every aggregation rule promises. A new rule is added to `RULES` and must pass."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.aggregation.mean import WeightedMean
from federation.aggregation.tiles import ArrayTiles
from federation.names import SiteName
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.aggregation.rule import AggregationRule

RULES: dict[str, Callable[[], AggregationRule]] = {"mean": WeightedMean}
SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="a", dtype=DType.FLOAT32, shape=(33,)),
        TensorSpec(name="b", dtype=DType.FLOAT64, shape=(5,)),
        TensorSpec(name="c", dtype=DType.BFLOAT16, shape=(8,)),
    ]
)


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def rule(request: pytest.FixtureRequest) -> AggregationRule:
    return request.param()


def buffers_of(count: int, seed: int = 0) -> dict[SiteName, bytes]:
    random = np.random.default_rng(seed)
    return {
        SiteName(f"site-{index}"): b"".join(
            random.standard_normal(segment.elements).astype(segment.dtype.numpy).tobytes()
            for segment in SCHEMA.segments
        )
        for index in range(count)
    }


def source_of(buffers: dict[SiteName, bytes], tile_elements: int = 10) -> ArrayTiles:
    weights = {site: 1.0 + index for index, site in enumerate(sorted(buffers))}
    return ArrayTiles(SCHEMA, buffers, weights, tile_elements=tile_elements)


def values_of(rule: AggregationRule, source: ArrayTiles) -> np.ndarray:
    return np.concatenate([values.copy() for _, values in rule.combine(source)])


def as_float64(buffer: bytes) -> np.ndarray:
    parts = (buffer[each.offset : each.offset + each.nbytes] for each in SCHEMA.segments)
    return np.concatenate(
        [
            np.frombuffer(part, dtype=each.dtype.numpy).astype(np.float64)
            for part, each in zip(parts, SCHEMA.segments, strict=True)
        ]
    )


def test_yields_every_tile_once_in_order_as_float64(rule: AggregationRule) -> None:
    source = source_of(buffers_of(5))
    seen = []
    for tile, values in rule.combine(source):
        assert values.dtype == np.float64
        assert values.shape == (tile.elements,)
        seen.append(tile)
    assert seen == list(source.tiles)


def test_does_not_depend_on_the_order_of_arrival(rule: AggregationRule) -> None:
    buffers = buffers_of(4)
    expected = values_of(rule, source_of(buffers)).tobytes()
    for order in itertools.permutations(buffers):
        arrived = {site: buffers[site] for site in order}
        assert values_of(rule, source_of(arrived)).tobytes() == expected


def test_does_not_depend_on_the_tiles_beyond_rounding(rule: AggregationRule) -> None:
    buffers = buffers_of(5)
    expected = values_of(rule, source_of(buffers))
    for tile_elements in (1, 7, 1000):
        np.testing.assert_allclose(values_of(rule, source_of(buffers, tile_elements)), expected, rtol=1e-12)


def test_sites_that_agree_give_what_they_agree_on(rule: AggregationRule) -> None:
    (buffer,) = buffers_of(1).values()
    same = {SiteName(f"site-{index}"): buffer for index in range(5)}
    np.testing.assert_allclose(values_of(rule, source_of(same)), as_float64(buffer), rtol=1e-14)


def test_one_site_alone_gives_its_own_update(rule: AggregationRule) -> None:
    buffers = buffers_of(1)
    (buffer,) = buffers.values()
    np.testing.assert_allclose(values_of(rule, source_of(buffers)), as_float64(buffer), rtol=1e-14)


def test_stays_between_the_smallest_and_the_largest_value(rule: AggregationRule) -> None:
    buffers = buffers_of(6)
    rows = np.stack([as_float64(buffer) for buffer in buffers.values()])
    found = values_of(rule, source_of(buffers))
    assert (found >= rows.min(axis=0) - 1e-12).all()
    assert (found <= rows.max(axis=0) + 1e-12).all()


def test_refuses_no_sites_at_all(rule: AggregationRule) -> None:
    with pytest.raises(ValueError, match=r"weights|site"):
        list(rule.combine(source_of({})))
