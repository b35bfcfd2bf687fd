"""Schedules against their formulas, and the rates of a plan."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import PlanError
from federation.plan import Plan
from federation.rounds.schedules import check_schedules, factor, local_rate, server_rate


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
        ("cosine:0.2", [1, 0.2 + 0.8 * (0.5 + math.sqrt(0.125)), 0.6, 0.2 + 0.8 * (0.5 - math.sqrt(0.125)), 0.2]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("linear:0.5", [1, 0.875, 0.75, 0.625, 0.5]),
        ("step:2,0.1", [1, 1, 0.1, 0.1, 0.01]),
        ("exponential:0.5", [1, 0.5, 0.25, 0.125, 0.0625]),
        ("warmup:4", [0.25, 0.5, 0.75, 1, 1]),
    ],
)
def test_a_schedule_follows_its_formula(spec, expected):
    assert [factor(spec, number, 5) for number in range(1, 6)] == pytest.approx(expected, abs=1e-15)


@given(
    spec=st.sampled_from(["constant", "cosine:0.1", "linear", "step:3,0.5", "exponential:0.9", "warmup:5"]),
    rounds=st.integers(1, 50),
    number=st.integers(1, 60),
)
def test_factors_lie_between_0_and_1_and_never_rise_but_in_a_warmup(spec, rounds, number):
    here, then = factor(spec, number, rounds), factor(spec, number + 1, rounds)
    assert 0 <= here <= 1 and (here <= then if spec.startswith("warmup") else then <= here)


def test_the_rates_of_a_round_are_the_plans_times_the_factor():
    plan = Plan(
        rounds=3, learning_rate=0.2, local_schedule="linear:0.5", server_learning_rate=2.0, server_schedule="step:1,0.1"
    )
    assert [local_rate(plan, number) for number in (1, 2, 3)] == pytest.approx([0.2, 0.15, 0.1])
    assert [server_rate(plan, number) for number in (1, 2, 3)] == pytest.approx([2.0, 0.2, 0.02])
    assert local_rate(Plan(learning_rate=0.1), 7) == 0.1, "without a schedule the rate is the plan's to the bit"


def test_a_plan_of_one_round_has_the_full_rate():
    assert [factor(spec, 1, 1) for spec in ("cosine", "linear", "step:1,0.5")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("cosin", "there is no schedule 'cosin', only constant, cosine"),
        ("constant:1", "expected constant"),
        ("cosine:2", "expected cosine:FLOOR"),
        ("step:2", "expected step:EVERY,FACTOR"),
        ("step:1.5,0.1", "expected step:EVERY,FACTOR"),
        ("step:2,0", "expected step:EVERY,FACTOR"),
        ("exponential:1.5", "expected exponential:FACTOR"),
        ("warmup:0", "expected warmup:ROUNDS"),
        ("linear:e", "not a number"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(spec, text):
    with pytest.raises(PlanError, match=text):
        check_schedules(Plan(local_schedule=spec))
    with pytest.raises(PlanError, match=text):
        check_schedules(Plan(server_schedule=spec))
