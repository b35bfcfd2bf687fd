"""No site weighs more than the cap, whatever it claims; and what needs no cap is left as it is."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from federation.errors import PlanError
from federation.plan import Plan
from federation.rounds.shares import capped, check_max_share, explain_no_spare, fewest_updates

WEIGHTS = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=12)
CAPS = st.floats(0.05, 1.0) | st.sampled_from([1 / 3, 0.25, 0.5, 0.1])


@given(WEIGHTS, CAPS)
def test_no_share_is_above_the_cap_once_it_can_hold(weights: list[float], cap: float) -> None:
    assume(len(weights) * cap >= 1)
    found = capped(weights, cap)
    total = math.fsum(found)
    assert all(weight / total <= cap * (1 + 1e-9) for weight in found)
    assert all(weight > 0 for weight in found)


@given(WEIGHTS, CAPS)
def test_who_claims_more_never_weighs_less_and_those_below_keep_their_proportions(weights, cap) -> None:
    assume(len(weights) * cap >= 1)
    found = capped(weights, cap)
    pairs = sorted(zip(weights, found, strict=True))
    assert all(before[1] <= after[1] * (1 + 1e-9) for before, after in itertools.pairwise(pairs))
    level = max(found)
    assert all(after in (before, level) for before, after in zip(weights, found, strict=True))


@given(st.integers(1, 20), st.floats(1e-3, 1e9), CAPS)
def test_equal_weights_are_untouched(sites: int, weight: float, cap: float) -> None:
    assume(sites * cap >= 1)
    assert capped([weight] * sites, cap) == [weight] * sites


@given(WEIGHTS, st.permutations(range(12)))
def test_a_sites_weight_does_not_depend_on_the_order_of_the_sites(weights, order) -> None:
    cap = 1.5 / len(weights) if len(weights) > 1 else 1.0
    order = [index for index in order if index < len(weights)]
    shuffled = capped([weights[index] for index in order], cap)
    expected = capped(weights, cap)
    assert shuffled == pytest.approx([expected[index] for index in order], rel=1e-9)


@pytest.mark.parametrize(
    ("weights", "cap", "expected"),
    [
        ([1000.0, 10.0, 10.0], 0.5, [20.0, 10.0, 10.0]),
        ([1000.0, 1000.0, 10.0, 10.0], 0.4, [40.0, 40.0, 10.0, 10.0]),
        ([8.0, 4.0, 2.0], 1 / 3, [2.0, 2.0, 2.0]),
        ([3.0, 1.0], None, [3.0, 1.0]),
        ([7.0], 1.0, [7.0]),
    ],
)
def test_what_is_above_the_cap_is_cut_to_it(weights, cap, expected) -> None:
    assert capped(weights, cap) == pytest.approx(expected)


def test_a_cap_that_too_few_sites_with_weight_could_keep_is_refused() -> None:
    with pytest.raises(PlanError, match=r"only 1 of the round's updates weigh anything: a cap of 0\.5 needs 2"):
        capped([5.0, 0.0, 0.0], 0.5)


@pytest.mark.parametrize(
    ("plan", "fewest"),
    [
        ({"sites": 5, "minimum_sites": 5}, 5),
        ({"sites": 5}, 1),
        ({"sites": 5, "quorum": 3}, 3),
        ({"sites": 9, "minimum_sites": 6, "sample": 4}, 4),
        ({"sites": 9, "minimum_sites": 6, "sampler": "poisson:0.5"}, 1),
    ],
)
def test_a_round_closes_with_no_fewer_updates_than_quorum_or_all_that_may_be_asked(plan, fewest) -> None:
    assert fewest_updates(Plan(**plan), is_asynchronous=False) == fewest
    assert fewest_updates(Plan(**plan), is_asynchronous=True) == 1


def test_a_cap_that_cannot_hold_is_refused_with_what_to_change() -> None:
    check_max_share(Plan(sites=4, quorum=3, max_share=1 / 3), is_asynchronous=False)
    check_max_share(Plan(sites=4), is_asynchronous=True)
    with pytest.raises(PlanError, match=r"may close with 3 updates.*raise max_share to 0\.333333 .*need 4 updates"):
        check_max_share(Plan(sites=4, quorum=3, max_share=0.25), is_asynchronous=False)


def test_a_plan_with_fewer_sites_to_spare_than_may_be_hostile_is_explained():
    plan = {"rule": "trimmed_mean", "byzantine": 2, "sites": 10}
    assert explain_no_spare(Plan(**plan, minimum_sites=8, quorum=8)) == ""
    assert explain_no_spare(Plan(sites=10)) == ""
    assert "byzantine is 2, but a round needs 10 of 10" in explain_no_spare(Plan(**plan, minimum_sites=10))
    assert "2 hostile or broken can end the experiment. Set quorum" in explain_no_spare(Plan(**plan, quorum=9))


def test_a_robust_rule_without_byzantine_that_one_broken_site_can_end_is_explained():
    for robust in ({"rule": "median"}, {"pre_aggregation": ("clipping:1.0",)}):
        found = explain_no_spare(Plan(sites=4, **robust))
        assert found.startswith("a round needs 4 of 4 updates") and "1 hostile or broken can end" in found
        assert "minimum_sites, to 3" in found
        assert explain_no_spare(Plan(sites=4, quorum=3, **robust)) == ""
    assert explain_no_spare(Plan(sites=1, rule="median")) == ""
