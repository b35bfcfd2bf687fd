"""Scores against brute force, whatever the tiles, and with what a hostile site may send."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.aggregation import scores
from federation.aggregation.scores import COSINE, DISTANCE, KRUM, SiteScores


def names(count: int) -> list[str]:
    return [f"site-{index:02d}" for index in range(count)]


def score(rows, aggregate=None, *, tile: int = 0, **options):
    aggregate = rows.astype(np.float64).mean(axis=0) if aggregate is None else aggregate
    found = SiteScores(names(len(rows)), **options)
    step = tile or max(aggregate.size, 1)
    for start in range(0, aggregate.size, step):
        found.add(rows[:, start : start + step], aggregate[start : start + step])
    return found.finish()


def brute_force(rows, aggregate, neighbours):
    wide = rows.astype(np.longdouble)
    for index, row in enumerate(wide):
        squares = sorted(float(np.square(row - other).sum()) for at, other in enumerate(wide) if at != index)
        length = math.sqrt(np.square(row).sum()) * math.sqrt(np.square(aggregate).sum())
        yield {
            DISTANCE: math.sqrt(np.square(row - aggregate).sum()),
            COSINE: float((row * aggregate).sum()) / length,
            KRUM: math.fsum(squares[:neighbours]),
        }


@given(
    st.integers(3, 40),
    st.integers(16, 700),
    st.integers(0, 3),
    st.sampled_from(["f4", "f8", "f2"]),
    st.integers(1, 300),
)
def test_scores_are_those_of_brute_force_whatever_the_tiles(sites, elements, byzantine, dtype, tile) -> None:
    random = np.random.default_rng(sites * elements)
    rows = (1 + random.standard_normal((sites, elements))).astype(dtype)
    aggregate = rows.astype(np.float64).mean(axis=0)
    found = score(rows, tile=tile, byzantine=byzantine)
    neighbours = sites - byzantine - 2
    for site, expected in zip(names(sites), brute_force(rows, aggregate, neighbours), strict=True):
        if neighbours < 1:
            assert KRUM not in found[site]
            del expected[KRUM]
        # Of an update much shorter than the aggregate float32 knows the direction less well.
        assert found[site].pop(COSINE) == pytest.approx(expected.pop(COSINE), abs=5e-3)
        assert found[site] == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("size", [0.5, 0.8232, 1.1769, 1.25])
@pytest.mark.parametrize("elements", [100, 1000, 8192, 20_000])
def test_equal_updates_are_at_no_distance_from_each_other_however_far_from_the_aggregate(
    elements: int, size: float
) -> None:
    for value in (0.1, 0.37, 0.8123):  # sums of one number over and over round the same way each time
        rows = np.full((5, elements), value, np.float32)
        found = score(rows, size * rows[0].astype(np.float64), byzantine=2)
        assert {row[KRUM] for row in found.values()} == {0.0}


def test_two_updates_have_no_krum_score_and_one_has_none_at_all() -> None:
    rows = np.ones((2, 5), np.float32)
    assert all(set(found) == {DISTANCE, COSINE} for found in score(rows).values())
    assert score(rows[:1]) == {}


def test_equal_updates_are_at_no_distance_though_rounding_moves_their_mean() -> None:
    rows = np.tile(np.random.default_rng(1).standard_normal(5000).astype(np.float32) + 100, (7, 1))
    for found in score(rows).values():
        assert found == {DISTANCE: 0.0, COSINE: pytest.approx(1.0), KRUM: 0.0}


@pytest.mark.parametrize("apart", [1.0, 0.3, 0.2, 0.1, 1e-2, 1e-3])
def test_distances_are_as_good_however_nearly_equal_the_updates(apart: float) -> None:
    random = np.random.default_rng(5)
    rows = random.standard_normal(70_000) + apart * random.standard_normal((5, 70_000))
    aggregate = rows.astype(np.float32).astype(np.float64).mean(axis=0)
    found = score(rows.astype(np.float32), aggregate, byzantine=1)
    for site, expected in zip(names(5), brute_force(rows.astype(np.float32), aggregate, 2), strict=True):
        assert found[site][DISTANCE] == pytest.approx(expected[DISTANCE], rel=3e-6)
        assert found[site][KRUM] == pytest.approx(expected[KRUM], rel=3e-6)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e20, 3e38])
def test_a_huge_update_stands_out_and_spoils_no_score(size: float) -> None:
    rows = np.random.default_rng(2).standard_normal((9, 4000)).astype(np.float32)
    rows[4] = size
    for aggregate in (None, np.median(rows.astype(np.float64), axis=0)):
        found = score(rows, aggregate)
        assert all(math.isfinite(value) for row in found.values() for value in row.values())
        for name in (DISTANCE, KRUM):
            others = [row[name] for site, row in found.items() if site != "site-04"]
            assert found["site-04"][name] > 3 * max(others)


def test_an_update_beyond_float64_counts_as_the_largest_number_there_is() -> None:
    rows = np.ones((4, 10))
    rows[0] = 1e300
    found = score(rows, np.ones(10))
    largest = float(np.finfo(np.float64).max)
    assert found["site-00"][COSINE] == -1.0 and found["site-01"][COSINE] == pytest.approx(1.0)
    assert (found["site-00"][DISTANCE], found["site-00"][KRUM]) == (largest, largest)
    assert found["site-01"][DISTANCE] == 0.0 and found["site-01"][KRUM] == 0.0


def test_tiny_zero_and_denormal_updates_have_scores() -> None:
    rows = np.zeros((4, 100), np.float32)
    rows[1], rows[2] = 1e-40, 1e-20
    for found in score(rows).values():
        assert all(math.isfinite(value) for value in found.values())
    assert score(rows)["site-00"][COSINE] == 0.0
    assert all(row[DISTANCE] == 0.0 for row in score(np.zeros((4, 10), np.float32)).values())


def test_a_flipped_update_points_the_other_way() -> None:
    rows = np.tile(np.linspace(1, 2, 50), (5, 1))
    rows[0] *= -1
    found = score(rows)
    assert found["site-00"][COSINE] == pytest.approx(-1) and found["site-01"][COSINE] == pytest.approx(1)


def test_scores_do_not_depend_on_the_order_of_the_sites() -> None:
    rows = np.random.default_rng(3).standard_normal((6, 300)).astype(np.float32)
    order = [3, 1, 5, 0, 2, 4]
    plain, shuffled = list(score(rows).values()), list(score(rows[order]).values())
    for place, index in enumerate(order):
        assert shuffled[place] == pytest.approx(plain[index], rel=1e-5)


def test_many_sites_have_no_krum_score_unless_it_is_needed() -> None:
    rows = np.random.default_rng(4).standard_normal((scores.KRUM_SITES + 1, 20)).astype(np.float32)
    plain, paired = score(rows), score(rows, needs_krum=True)
    for site, row in plain.items():
        assert set(row) == {DISTANCE, COSINE}
        assert row == pytest.approx({name: paired[site][name] for name in row}, rel=1e-5, abs=1e-6)
    assert len({row[KRUM] for row in itertools.islice(paired.values(), 5)}) == 5
