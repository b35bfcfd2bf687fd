"""Sorting networks put every rank into its place, for any number of rows, and leave what they are given alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from federation.aggregation.scratch import Scratch
from federation.aggregation.sorting import mean_of, mean_of_nearest, median_row, middle_of, network, sorted_rows


@pytest.mark.parametrize("count", range(1, 11))
def test_all_zeros_and_ones_are_sorted_and_so_is_everything(count: int) -> None:
    """The zero-one principle: a network that sorts every sequence of zeros and ones sorts every sequence."""
    rows = np.array(list(itertools.product((0.0, 1.0), repeat=count))).T.copy()
    before = rows.copy()
    for first in range(count):
        for last in range(first, count):
            found = sorted_rows(rows, first, last, Scratch())
            np.testing.assert_array_equal(np.stack(found), np.sort(rows, axis=0)[first : last + 1])
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("count", [17, 20, 33, 64, 101])
def test_many_rows_are_sorted_with_scratch_that_was_used_before(count: int) -> None:
    scratch = Scratch()
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(-5, 5, (count, 40)).astype(np.float32)
        found = np.stack(sorted_rows(rows, 3, count - 4, scratch))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.sort(rows, axis=0)[3:-3])
        np.testing.assert_array_equal(median_row(rows, scratch, np.empty(40)), np.median(rows.astype(float), axis=0))


def test_a_median_needs_fewer_comparators_than_a_sort() -> None:
    assert len(network(20, 9, 10)) < len(network(20, 0, 19)) <= 103


def test_means_of_the_largest_numbers_do_not_overflow() -> None:
    largest = np.full(3, np.finfo(np.float64).max)
    tiny = np.full(3, 5e-324)
    for row in (largest, tiny):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(middle_of(row, row, np.empty(3)), row)
            np.testing.assert_allclose(mean_of([row, row, row], Scratch(), np.empty(3)), row, rtol=1e-12)


def test_of_two_values_equally_far_from_the_median_the_smaller_one_counts() -> None:
    ordered = [np.array([value]) for value in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    means = [float(mean_of_nearest(ordered, keep, Scratch(), np.empty(1))[0]) for keep in (1, 2, 3, 4, 5)]
    assert means == [0.0, -0.5, 0.0, -0.5, 0.0]
