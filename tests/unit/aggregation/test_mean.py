"""The mean: the right number, the same bytes every time, whatever the order of arrival and the tiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.aggregation.mean import WeightedMean, normalised
from federation.aggregation.tiles import ArrayTiles
from federation.names import SiteName
from federation.tensors import DType, TensorSchema, TensorSpec

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="a", dtype=DType.FLOAT32, shape=(50,)),
        TensorSpec(name="b", dtype=DType.FLOAT64, shape=(7,)),
        TensorSpec(name="c", dtype=DType.BFLOAT16, shape=(9,)),
        TensorSpec(name="d", dtype=DType.FLOAT16, shape=(11,)),
        TensorSpec(name="n", dtype=DType.INT64, shape=(3,)),
    ]
)
FLOATS = SCHEMA.select(lambda spec: spec.dtype.is_float)
WEIGHTS = st.lists(st.just(0.0) | st.floats(1e-6, 1e9), min_size=1, max_size=5).filter(lambda weights: sum(weights) > 0)


def random_buffers(sites: int, seed: int) -> dict[SiteName, bytes]:
    random = np.random.default_rng(seed)
    buffers = {}
    for site in range(sites):
        parts = [random.standard_normal(segment.elements).astype(segment.dtype.numpy) for segment in SCHEMA.segments]
        buffers[SiteName(f"site-{site}")] = b"".join(part.tobytes() for part in parts)
    return buffers


def combined(buffers: dict[SiteName, bytes], weights: dict[SiteName, float], tile_elements: int = 13) -> bytes:
    source = ArrayTiles(SCHEMA, buffers, weights, tile_elements=tile_elements)
    return b"".join(values.tobytes() for _, values in WeightedMean().combine(source))


def brute_force(buffers: dict[SiteName, bytes], weights: dict[SiteName, float]) -> list[float]:
    total = math.fsum(weights.values())
    result = []
    for segment in SCHEMA.segments:
        if not segment.dtype.is_float:
            continue
        rows = {
            site: np.frombuffer(
                buffer[segment.offset : segment.offset + segment.nbytes], dtype=segment.dtype.numpy
            ).astype(float)
            for site, buffer in buffers.items()
        }
        for index in range(segment.elements):
            result.append(math.fsum(weights[site] * row[index] for site, row in rows.items()) / total)
    return result


@given(WEIGHTS, st.integers(0, 3), st.integers(1, 60))
def test_mean_is_what_brute_force_gives(weights: list[float], seed: int, tile_elements: int) -> None:
    buffers = random_buffers(len(weights), seed)
    by_site = dict(zip(buffers, weights, strict=True))
    found = np.frombuffer(combined(buffers, by_site, tile_elements))
    np.testing.assert_allclose(found, brute_force(buffers, by_site), rtol=1e-12, atol=1e-14)


@given(WEIGHTS, st.randoms(use_true_random=False), st.integers(1, 60))
def test_mean_is_the_same_bytes_whatever_the_order_of_arrival_and_the_tiles(weights, random, tile_elements) -> None:
    buffers = random_buffers(len(weights), 0)
    by_site = dict(zip(buffers, weights, strict=True))
    arrived = list(buffers)
    random.shuffle(arrived)
    shuffled = {site: buffers[site] for site in arrived}
    assert combined(shuffled, by_site, tile_elements) == combined(buffers, by_site)


@given(WEIGHTS)
def test_scaling_all_weights_changes_nothing(weights: list[float]) -> None:
    buffers = random_buffers(len(weights), 1)
    by_site = dict(zip(buffers, weights, strict=True))
    doubled = {site: 2 * weight for site, weight in by_site.items()}
    assert combined(buffers, doubled) == combined(buffers, by_site)


def test_a_site_of_weight_0_does_not_count() -> None:
    buffers = random_buffers(2, 0)
    first, second = buffers
    alone = combined({first: buffers[first]}, {first: 5.0})
    assert combined(buffers, {first: 5.0, second: 0.0}) == alone


def test_one_site_is_its_own_mean_exactly() -> None:
    buffers = random_buffers(1, 0)
    found = np.frombuffer(combined(buffers, {SiteName("site-0"): 3.0}))
    np.testing.assert_array_equal(found, brute_force(buffers, {SiteName("site-0"): 1.0}))


def test_small_terms_are_not_lost_beside_large_ones_as_they_would_be_in_float32() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT32, shape=(1,))])
    values = [1e8, 1.0, 1.0, -1e8]
    buffers = {SiteName(f"site-{i}"): np.float32(value).tobytes() for i, value in enumerate(values)}
    source = ArrayTiles(schema, buffers, dict.fromkeys(buffers, 1.0))
    ((_, found),) = WeightedMean().combine(source)
    assert found[0] == 0.5


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [2.0, -1.0], [math.nan], [math.inf]], ids=str)
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        normalised(weights)


def test_an_empty_payload_has_no_tiles() -> None:
    empty = TensorSchema.of([])
    assert list(WeightedMean().combine(ArrayTiles(empty, {SiteName("a"): b""}, {SiteName("a"): 1.0}))) == []
