"""Partition schemes: whole, disjoint, in original order, and as skewed as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.partitions import (
    Source,
    balanced,
    dirichlet_sizes,
    fcube,
    fcube_points,
    feature_noise,
    iid,
    inner_dirichlet,
    label_dirichlet,
    labels_per_site,
    lognormal_sizes,
    natural,
    parse_partition,
    partition_names,
    shards,
)
from federation.errors import PlanError


def source_of(labels, points=None, ids=None):
    return Source(examples=len(labels), labels=lambda: labels, points=lambda: points, ids=lambda: ids)


def is_disjoint(parts):
    joined = np.concatenate(parts)
    return len(np.unique(joined)) == len(joined) and all((np.diff(part) > 0).all() for part in parts)


def is_whole(parts, examples):
    return is_disjoint(parts) and sorted(np.concatenate(parts).tolist()) == list(range(examples))


def sizes_of(parts):
    return [len(part) for part in parts]


WHOLE = ["iid", "balanced", "lognormal:0.8", "sizes:2", "dirichlet:0.5,1", "inner:0.3", "shards:2", "noise:0.1"]


@settings(max_examples=60)
@given(
    scheme=st.sampled_from(WHOLE),
    examples=st.integers(120, 400),
    classes=st.integers(2, 6),
    sites=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_every_example_goes_to_exactly_one_site_under_its_original_number(scheme, examples, classes, sites, seed):
    labels = np.random.default_rng(seed).integers(0, classes, size=examples)
    parts = parse_partition(scheme).divide(source_of(labels), sites, seed=seed)
    assert len(parts) == sites and is_whole(parts, examples)
    again = parse_partition(scheme).divide(source_of(labels), sites, seed=seed)
    assert all((part == other).all() for part, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("scheme", ["iid", "balanced", "lognormal:0.8", "dirichlet:0.5", "inner:0.3", "shards:2"])
def test_another_seed_is_another_division(scheme):
    labels = np.arange(300) % 5
    first, second = (parse_partition(scheme).divide(source_of(labels), 4, seed=seed) for seed in (1, 2))
    assert any(part.tolist() != other.tolist() for part, other in zip(first, second, strict=True))


def test_iid_sizes_differ_by_one_at_most_and_replacement_repeats_examples():
    assert sizes_of(iid(103, 4, seed=0)) == [26, 26, 26, 25]
    parts = iid(103, 4, seed=0, replacement=True)
    assert sizes_of(parts) == [26, 26, 26, 25] and not is_disjoint(parts)


def test_balanced_gives_each_site_its_share_of_every_class():
    labels = np.repeat([0, 1, 2], [50, 31, 22])
    counts = np.stack([np.bincount(labels[part], minlength=3) for part in balanced(labels, 4, seed=3)])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all() and np.ptp(counts.sum(axis=1)) <= 1


def test_lognormal_sizes_without_spread_are_balanced_and_the_remainder_is_the_first_sites():
    assert sizes_of(lognormal_sizes(103, 4, sigma=0, seed=1)) == [28, 25, 25, 25]
    assert np.ptp(sizes_of(lognormal_sizes(1000, 8, sigma=1.0, seed=1))) > 100


def test_a_lognormal_draw_leaves_no_site_empty():
    for seed in range(20):
        assert min(sizes_of(lognormal_sizes(12, 10, sigma=3.0, seed=seed))) >= 1


def test_dirichlet_sizes_have_their_minimum_or_say_why_not():
    parts = dirichlet_sizes(1000, 10, alpha=0.8, seed=4)
    assert min(sizes_of(parts)) >= 10 and is_whole(parts, 1000)
    with pytest.raises(PlanError, match=r"dirichlet_sizes\(0.01\) gave some site fewer than 10 of 1000 examples"):
        dirichlet_sizes(1000, 20, alpha=0.01, seed=0)


def test_label_dirichlet_is_the_more_skewed_the_smaller_alpha():
    labels = np.arange(6000) % 10

    def skew(alpha):
        parts = label_dirichlet(labels, 5, alpha=alpha, seed=7)
        shares = np.stack([np.bincount(labels[part], minlength=10) / len(part) for part in parts])
        return float(np.abs(shares - 0.1).sum(axis=1).mean())

    assert skew(0.1) > 1.1 > skew(1.0) > 0.5 > skew(1000.0) and skew(1000.0) < 0.1


def test_label_dirichlet_ends_with_what_to_change_when_no_draw_will_do():
    labels = np.arange(1437) % 10
    text = (
        r"label_dirichlet\(0.01\) gave some site fewer than 10 of 1437 examples in 1000 draws; raise .*dirichlet:0.01,1"
    )
    with pytest.raises(PlanError, match=text):
        label_dirichlet(labels, 100, alpha=0.01, seed=0)
    assert min(sizes_of(label_dirichlet(labels, 20, alpha=0.3, seed=0))) >= 10


def test_label_dirichlet_stops_giving_to_a_site_that_has_its_share():
    labels = np.arange(3000) % 30
    # A site passes n/K by the last class it gets at most.
    assert max(sizes_of(label_dirichlet(labels, 5, alpha=0.2, seed=5, minimum=1))) < 600 + 100


def test_inner_dirichlet_keeps_sizes_equal_and_mixes_its_own():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200))
    parts = inner_dirichlet(labels, 8, alpha=0.1, seed=1)
    assert sizes_of(parts) == [250] * 8 and is_whole(parts, 2000)
    largest = [np.bincount(labels[part], minlength=10).max() / len(part) for part in parts]
    assert np.mean(largest) > 0.4, "the skew is in the original labels"
    even = inner_dirichlet(labels, 8, alpha=1e6, seed=1)
    assert all(np.bincount(labels[part], minlength=10).max() < 60 for part in even)


def test_inner_dirichlet_fills_places_as_one_after_the_other_would():
    from federation.data.partitions.classes import _fill

    rng = np.random.default_rng(9)
    places = rng.integers(0, 4, size=200)
    mixes = rng.dirichlet(np.full(3, 0.3), size=4)
    left, draws = np.array([100, 60, 40]), rng.random(200)
    remaining, expected = left.astype(float), []
    for site, draw in zip(places, draws, strict=True):
        weights = mixes[site] * (remaining > 0)
        weights = weights if weights.sum() > 0 else remaining
        bounds = np.cumsum(weights)
        expected.append(int(np.searchsorted(bounds, draw * bounds[-1], side="right")))
        remaining[expected[-1]] -= 1
    got = _fill(places, mixes, left, draws)
    assert np.bincount(got).tolist() == left.tolist()
    # Once a whole mix is used up, places are drawn by what is left, which the one-by-one loop counts down.
    assert np.mean(got == np.array(expected)) > 0.8
    before = int(np.flatnonzero(np.minimum.reduce([left[c] - np.cumsum(got == c) for c in range(3)]) == 0)[0])
    assert got[: before + 1].tolist() == expected[: before + 1]


def test_shards_give_each_site_so_many_pieces_of_the_sorted_examples():
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 60))
    parts = shards(labels, 10, per_site=2, seed=0)
    assert sizes_of(parts) == [60] * 10 and is_whole(parts, 600)
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)
    mild = shards(labels, 10, per_site=10, seed=0)
    classes = [len(np.unique(labels[part])) for part in (*parts, *mild)]
    assert np.mean(classes[10:]) > np.mean(classes[:10]), "more shards are the milder skew"


def test_shards_left_over_are_dropped_with_a_warning():
    with pytest.warns(UserWarning, match="23 shards among 10 sites leave 3 over"):
        parts = shards(np.arange(230) % 7, 10, per_site=0, count=23, seed=0)
    assert sizes_of(parts) == [20] * 10 and is_disjoint(parts)


def test_each_site_holds_so_many_classes_and_a_class_is_divided_evenly():
    labels = np.repeat(np.arange(5), 100)
    parts = labels_per_site(labels, 10, count=2, seed=3)
    assert is_whole(parts, 500)
    for site, part in enumerate(parts):
        assert len(np.unique(labels[part])) == 2 and site % 5 in labels[part]
    counts = np.stack([np.bincount(labels[part], minlength=5) for part in parts])
    for column in counts.T:
        held = column[column > 0]
        assert held.max() - held.min() <= 1


def test_classes_that_no_site_holds_are_dropped_with_a_warning():
    with pytest.warns(UserWarning, match="7 of 10 classes are held by no site"):
        parts = labels_per_site(np.arange(100) % 10, 3, count=1, seed=0)
    assert sizes_of(parts) == [10, 10, 10]
    with pytest.raises(PlanError, match="11 of 10 classes"):
        labels_per_site(np.arange(100) % 10, 3, count=11, seed=0)


def test_fcube_gives_four_sites_two_opposite_octants_each():
    points, classes = fcube_points(2000, seed=1)
    parts = fcube(points)
    assert len(parts) == 4 and is_whole(parts, 2000)
    for part in parts:
        octants = np.unique((points[part] > 0) @ np.array([4, 2, 1]))
        assert len(octants) == 2 and octants.sum() == 7
        assert abs(classes[part].mean() - 0.5) < 0.1, "classes are balanced, features are not"
    with pytest.raises(PlanError, match=r"points of shape \(n, 3\)"):
        fcube(np.zeros((4, 2)))


def test_feature_noise_grows_from_site_to_site_and_its_sigma_is_a_variance():
    samples = np.zeros((4000, 3), dtype=np.float32)
    noisy = [feature_noise(samples, site, 4, sigma=0.4, seed=1) for site in range(4)]
    assert [array.dtype for array in noisy] == [np.float32] * 4 and not samples.any()
    assert np.allclose([array.var() for array in noisy], [0.1, 0.2, 0.3, 0.4], rtol=0.05)
    with pytest.raises(PlanError, match="needs float samples"):
        feature_noise(samples.astype(int), 0, 4, sigma=0.4, seed=1)


def test_natural_owners_keep_their_examples_together():
    ids = np.array(["b", "a", "c", "a", "b", "d"])
    assert [part.tolist() for part in natural(ids)] == [[1, 3], [0, 4], [2], [5]]
    assert [part.tolist() for part in natural(ids, 2)] == [[1, 2, 3], [0, 4, 5]]
    with pytest.raises(PlanError, match="4 owners among 5 sites"):
        natural(ids, 5)


@pytest.mark.parametrize("form", partition_names())
def test_every_scheme_is_read_by_the_name_it_lists(form):
    spec = (
        form.replace("[,MINIMUM]", ",3")
        .replace("ALPHA", "0.5")
        .replace("SIGMA", "0.5")
        .replace("PER_SITE", "2")
        .replace("COUNT", "2")
    )
    assert str(parse_partition(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("dirichelt:0.3", "there is no partition"),
        ("dirichlet", "expected dirichlet:ALPHA"),
        ("dirichlet:0.3,10,4", r"expected dirichlet:ALPHA\[,MINIMUM\]"),
        ("iid:2", "expected iid"),
        ("shards:1.5", "expected shards:PER_SITE"),
        ("dirichlet:much", "not a number"),
    ],
)
def test_a_scheme_that_does_not_fit_is_refused(spec, text):
    with pytest.raises(PlanError, match=text):
        parse_partition(spec)


@pytest.mark.parametrize(
    "divide",
    [
        lambda: iid(3, 4, seed=0),
        lambda: balanced(np.zeros(3), 4, seed=0),
        lambda: lognormal_sizes(10, 2, sigma=-1, seed=0),
        lambda: dirichlet_sizes(10, 2, alpha=0, seed=0),
        lambda: label_dirichlet(np.zeros(9), 3, alpha=-1, seed=0),
        lambda: inner_dirichlet(np.zeros(9), 3, alpha=0, seed=0),
        lambda: shards(np.zeros(9), 5, per_site=2, seed=0),
        lambda: feature_noise(np.zeros(3), 4, 4, sigma=0.1, seed=0),
    ],
)
def test_what_cannot_be_divided_is_a_plan_error(divide):
    with pytest.raises(PlanError):
        divide()
