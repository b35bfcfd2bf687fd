"""What every aggregation rule promises, alone and behind every pre-aggregation. A new rule is in `RULES` at once."""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.aggregation.combiner import Aggregation
from federation.aggregation.registry import PRE_AGGREGATIONS, RULES, load_pre_aggregation, load_rule
from federation.aggregation.rule import RuleContext
from federation.aggregation.tiles import ArrayTiles
from federation.errors import PlanError
from federation.names import SiteName
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from federation.aggregation.rule import AggregationRule

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="a", dtype=DType.FLOAT32, shape=(33,)),
        TensorSpec(name="b", dtype=DType.FLOAT64, shape=(5,)),
        TensorSpec(name="c", dtype=DType.BFLOAT16, shape=(8,)),
    ]
)
WIDE = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT64, shape=(40,))])
CHOICES = {"": (), "nnm": ("nnm",), "bucketing": ("bucketing:2",), "clipping": ("clipping:4.0",), "arc": ("arc",)}
OPTIONS: dict[str, dict[str, Any]] = {
    # By default its last picks look at one neighbour, and two that are nearest to each other are equal: names decide.
    "bulyan": {"selection": "n-2f-2"},
    "monna": {"trusted": "site-00"},
    "fltrust": {"trusted": "site-00"},
}
TRUSTING = {"monna", "fltrust"}
FROM_ORIGIN = {"centered_clipping", "fltrust"}
"""Rules that measure from the origin or from the last aggregate, so that a common offset changes what they do."""
OFFSET_BOUND = {"clipping", "arc"}
"""Pre-aggregations that measure from the origin, so that a common offset changes what they do."""


@pytest.fixture(params=RULES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CHOICES.values(), ids=[f"after {choice}" if choice else "alone" for choice in CHOICES])
def before(request: pytest.FixtureRequest) -> tuple[str, ...]:
    chosen: tuple[str, ...] = request.param
    return chosen


def rule_of(name: str) -> AggregationRule:
    return load_rule(name, **OPTIONS.get(name, {}))


def aggregation_of(name: str, before: tuple[str, ...] = (), byzantine: int = 1) -> Aggregation:
    if name in TRUSTING and any(choice.startswith("bucketing") for choice in before):
        pytest.skip("refused: no bucket is the trusted site's own")
    return Aggregation(rule=rule_of(name), before=tuple(map(load_pre_aggregation, before)), byzantine=byzantine)


def count_for(aggregation: Aggregation) -> int:
    """Return the fewest updates the aggregation takes, or a few more."""
    for count in range(5, 100):
        try:
            aggregation.check(count)
        except PlanError:
            continue
        return count
    raise AssertionError("no number of sites is enough")


def vectors_of(count: int, seed: int = 0, schema: TensorSchema = SCHEMA) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, sum(each.elements for each in schema.segments)))


def packed(row: np.ndarray, schema: TensorSchema) -> bytes:
    parts, start = [], 0
    for segment in schema.segments:
        parts.append(row[start : start + segment.elements].astype(segment.dtype.numpy).tobytes())
        start += segment.elements
    return b"".join(parts)


def source_of(
    rows: np.ndarray, schema: TensorSchema = SCHEMA, tile_elements: int = 10, order: tuple[int, ...] | None = None
) -> ArrayTiles:
    places = order or tuple(range(len(rows)))
    buffers = {SiteName(f"site-{place:02d}"): packed(rows[place], schema) for place in places}
    weights = {site: 1.0 for site in buffers}
    return ArrayTiles(schema, buffers, weights, tile_elements=tile_elements)


def combined(aggregation: Aggregation, source: ArrayTiles, threads: int | None = 2) -> np.ndarray:
    combiner = aggregation.for_round(Random, state_of(aggregation.rule), threads=threads)
    return np.concatenate([values.copy() for _, values in combiner.combine(source)])


class Zeros:
    def read(self, tile: object, out: np.ndarray) -> None:
        out[...] = 0.0


def state_of(rule: AggregationRule) -> dict[str, Zeros]:
    return {name: Zeros() for name in rule.state}


def as_float64(buffer: bytes) -> np.ndarray:
    parts = (buffer[each.offset : each.offset + each.nbytes] for each in SCHEMA.segments)
    return np.concatenate(
        [
            np.frombuffer(part, dtype=each.dtype.numpy).astype(np.float64)
            for part, each in zip(parts, SCHEMA.segments, strict=True)
        ]
    )


def test_yields_every_tile_once_in_order_as_float64_and_then_reports(name: str, before: tuple[str, ...]) -> None:
    aggregation = aggregation_of(name, before)
    source = source_of(vectors_of(count_for(aggregation)))
    combiner = aggregation.for_round(Random, state_of(aggregation.rule))
    seen = []
    for tile, values in combiner.combine(source):
        assert values.dtype == np.float64
        assert values.shape == (tile.elements,)
        assert combiner.report is None
        seen.append(tile)
    assert seen == list(source.tiles)
    assert combiner.report is not None
    assert combiner.report.note
    assert combiner.report.weights is None or set(combiner.report.weights) == set(source.sites)


def test_does_not_depend_on_the_order_of_arrival(name: str) -> None:
    aggregation = aggregation_of(name)
    rows = vectors_of(count_for(aggregation))
    expected = combined(aggregation, source_of(rows)).tobytes()
    for order in itertools.islice(itertools.permutations(range(len(rows))), 3, 100, 31):
        assert combined(aggregation, source_of(rows, order=order)).tobytes() == expected


def test_is_the_same_bytes_for_any_number_of_threads(name: str, before: tuple[str, ...]) -> None:
    aggregation = aggregation_of(name, before)
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT32, shape=(40_000,))])
    source = source_of(vectors_of(count_for(aggregation), schema=schema), schema, tile_elements=1 << 15)
    expected = combined(aggregation, source, threads=1).tobytes()
    for threads in (2, 5):
        assert combined(aggregation, source, threads=threads).tobytes() == expected


def test_does_not_depend_on_the_tiles_beyond_rounding(name: str, before: tuple[str, ...]) -> None:
    aggregation = aggregation_of(name, before)
    rows = vectors_of(count_for(aggregation))
    expected = combined(aggregation, source_of(rows))
    for tile_elements in (1, 7, 1000):
        found = combined(aggregation, source_of(rows, tile_elements=tile_elements))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_sites_that_agree_give_what_they_agree_on(name: str, before: tuple[str, ...]) -> None:
    aggregation = aggregation_of(name, before)
    rows = np.repeat(vectors_of(1) * 0.1, count_for(aggregation), axis=0)
    expected = as_float64(packed(rows[0], SCHEMA))
    np.testing.assert_allclose(combined(aggregation, source_of(rows)), expected, rtol=1e-9)


def test_does_not_depend_on_which_site_sent_which_vector(name: str) -> None:
    aggregation = aggregation_of(name)
    rows = vectors_of(count_for(aggregation))
    expected = combined(aggregation, source_of(rows))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows))
        if name in TRUSTING:
            order = np.concatenate([[0], order[order != 0]])
        shuffled = rows[order]
        np.testing.assert_allclose(combined(aggregation, source_of(shuffled)), expected, rtol=1e-9, atol=1e-12)


def test_moves_and_grows_with_the_vectors(name: str, before: tuple[str, ...]) -> None:
    if is_clipped(before):
        pytest.skip("clipping measures from the origin")
    if name in FROM_ORIGIN:
        pytest.skip("so does the rule")
    aggregation = aggregation_of(name, before)
    rows = vectors_of(count_for(aggregation), schema=WIDE)
    expected = combined(aggregation, source_of(rows, WIDE))
    offset = np.random.default_rng(9).standard_normal(rows.shape[1])
    found = combined(aggregation, source_of(rows * 8.0 + offset, WIDE))
    np.testing.assert_allclose(found, expected * 8.0 + offset, rtol=1e-6, atol=1e-6)


def test_stays_between_the_smallest_and_the_largest_value(name: str, before: tuple[str, ...]) -> None:
    aggregation = aggregation_of(name, before)
    rows = vectors_of(count_for(aggregation))
    found = combined(aggregation, source_of(rows))
    low, high = np.minimum(rows.min(axis=0), 0.0), np.maximum(rows.max(axis=0), 0.0)
    assert (found >= low - 0.02).all()
    assert (found <= high + 0.02).all()


@pytest.mark.parametrize("size", [1.7e308, 1e30, 1e-30, 5e-324], ids=["huge", "large", "tiny", "denormal"])
def test_vectors_of_any_size_give_a_finite_result_of_that_size(name: str, before: tuple[str, ...], size: float) -> None:
    if before and before[0].startswith("clipping"):
        pytest.skip("clipping has a size of its own")
    aggregation = aggregation_of(name, before)
    rows = np.clip(np.round(vectors_of(count_for(aggregation), schema=WIDE)), -1, 1) * size
    found = combined(aggregation, source_of(rows, WIDE))
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= size * (1 + 1e-6)


def test_one_huge_vector_does_not_move_a_robust_result(name: str, before: tuple[str, ...]) -> None:
    if name == "mean" and not is_clipped(before):
        pytest.skip("the mean stands nothing")
    aggregation = aggregation_of(name, before)
    rows = vectors_of(count_for(aggregation), schema=WIDE)
    for size in (1e12, 1e105, 1e200, 1.7e308):
        rows[1] = size
        found = combined(aggregation, source_of(rows, WIDE))
        assert np.abs(found).max() < 10


def test_tiny_vectors_beside_a_huge_one_give_a_tiny_result(name: str, before: tuple[str, ...]) -> None:
    if name == "mean" and before != ("arc",):
        pytest.skip("the mean stands nothing, and clipping has a size of its own")
    aggregation = aggregation_of(name, before)
    rows = vectors_of(count_for(aggregation), schema=WIDE)
    for honest, hostile in ((1e-323, 1e-10), (1e-310, -1.0), (1e-160, 1e150), (1e-310, 1.7e308)):
        vectors = rows * honest
        vectors[1] = hostile
        found = combined(aggregation, source_of(vectors, WIDE))
        assert np.abs(found).max() <= 10 * honest


def test_the_first_site_may_send_a_vector_of_quite_another_size(name: str, before: tuple[str, ...]) -> None:
    """The first is the one that rules with a trusted site trust: what comes out is no longer than what went in."""
    aggregation = aggregation_of(name, before)
    rows = np.clip(vectors_of(count_for(aggregation), schema=WIDE), -1, 1)
    for one, others in ((1e-310, 1.7e308), (1e150, 1e-160), (1.0, 1e-310)):
        vectors = rows * others
        vectors[0] = one
        found = combined(aggregation, source_of(vectors, WIDE))
        assert np.isfinite(found).all()
        assert np.linalg.norm(found / max(one, others)) <= 7


def is_clipped(before: tuple[str, ...]) -> bool:
    return bool(OFFSET_BOUND.intersection(choice.partition(":")[0] for choice in before))


def test_refuses_no_sites_at_all(name: str) -> None:
    with pytest.raises((ValueError, PlanError), match=r"site|updates"):
        list(rule_of(name).combine(source_of(np.empty((0, 46))), RuleContext()))


def test_refuses_one_site_fewer_than_its_condition_says(name: str, before: tuple[str, ...]) -> None:
    aggregation = aggregation_of(name, before, byzantine=2)
    enough = next(count for count in range(1, 100) if is_enough(aggregation, count))
    if enough == 1:
        pytest.skip("one is enough")
    with pytest.raises(PlanError, match=r"stands byzantine = 2 only where .*updates or more and has"):
        combined(aggregation, source_of(vectors_of(enough - 1)))


def is_enough(aggregation: Aggregation, count: int) -> bool:
    try:
        aggregation.check(count)
    except PlanError:
        return False
    return True


def test_every_pre_aggregation_is_tried_here() -> None:
    assert {choice.partition(":")[0] for choices in CHOICES.values() for choice in choices} == set(PRE_AGGREGATIONS)
