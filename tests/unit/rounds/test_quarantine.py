"""Strikes, quarantine and release: a state that is handed on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import federation
from federation.aggregation.scores import SiteScores
from federation.errors import PlanError
from federation.names import Epoch, RoundNumber, SiteName
from federation.plan import Plan, Quarantine
from federation.rounds.history import QuarantinedSite, RoundRecord
from federation.rounds.quarantine import Suspicion, check_quarantine, judge, release

A, B, C, D = (SiteName(f"site-{letter}") for letter in "abcd")
KRUM = Quarantine(score="krum", threshold=3.0, rounds=2)
CALM = {A: {"krum": 1.0}, B: {"krum": 1.1}, C: {"krum": 0.9}, D: {"krum": 1.0}}
FAR = {**CALM, D: {"krum": 4.0}}


def after(*rounds, policy=KRUM, before=None):
    suspicion = before or Suspicion()
    for number, scores in enumerate(rounds, start=1):
        suspicion = judge(policy, suspicion, RoundNumber(number), scores)
    return suspicion


def test_a_site_is_quarantined_after_so_many_rounds_in_a_row_and_not_before():
    assert after(FAR).strikes == {D: 1} and not after(FAR).held
    (held,) = after(FAR, FAR).held
    assert (held.site, held.since_round, held.releases) == (D, 2, 0)
    assert held.reason == (
        "krum above 3 times the round's median in 2 rounds in a row, the last 4 where 3.15 was the limit"
    )


def test_one_calm_round_clears_the_strikes_and_one_it_missed_does_not():
    assert not after(FAR, CALM, FAR).held
    assert after(FAR, {site: row for site, row in CALM.items() if site != D}, FAR).sites == {D}


def test_the_site_a_rule_trusts_gets_no_strikes():
    assert judge(KRUM, Suspicion(), RoundNumber(1), FAR, trusted=D) == Suspicion()


def test_equal_scores_of_nothing_are_beyond_nothing():
    assert after({site: {"krum": 0.0} for site in CALM}) == Suspicion()
    assert after({A: {"krum": 0.0}, B: {"krum": 0.0}, C: {"krum": 1e-9}}).strikes == {C: 1}


def test_where_the_median_is_nothing_only_the_farthest_is_beyond_it():
    found = {A: {"krum": 0.0}, B: {"krum": 0.0}, C: {"krum": 1e-9}, D: {"krum": 5e8}}
    assert after(found).strikes == {D: 1}


@pytest.mark.parametrize(("byzantine", "most"), [(0, 4), (1, 1), (2, 2)])
def test_no_more_are_held_than_hostile_sites_are_stood_and_the_farthest_first(byzantine, most):
    sites = [SiteName(f"site-{index}") for index in range(9)]
    policy = Quarantine(score="cosine", threshold=0.0, rounds=1)
    suspicion = Suspicion()
    for number in (1, 2, 3):
        scores = {
            site: {"cosine": index / 10 - 0.65} for index, site in enumerate(sites) if site not in suspicion.sites
        }
        suspicion = judge(policy, suspicion, RoundNumber(number), scores, byzantine=byzantine)
    assert suspicion.sites == set(sites[:most])


@pytest.mark.parametrize(("score", "length", "threshold"), [("distance", 5.4e7, 20.0), ("krum", 2.6e4, 3.0)])
def test_one_huge_update_makes_no_honest_score_nothing_and_no_honest_site_suspicious(score, length, threshold):
    rows = np.random.default_rng(0).normal(size=(10, 2000)).astype(np.float32)
    rows *= np.linspace(0.9, 1.5, 10, dtype=np.float32)[:, None]
    rows[9] = 0
    rows[9, 0] = length
    names = [SiteName(f"s{index}") for index in range(10)]
    scores = SiteScores(names, byzantine=2, needs_krum=True)
    scores.add(rows, np.median(rows, axis=0).astype(float))
    policy = Quarantine(score=score, threshold=threshold, rounds=1)
    found = judge(policy, Suspicion(), RoundNumber(1), scores.finish(), byzantine=2)
    assert found.sites == {"s9"} and not found.strikes


def test_a_cosine_is_measured_against_the_threshold_itself():
    policy = Quarantine(score="cosine", threshold=-0.2, rounds=1)
    found = after({A: {"cosine": 0.9}, B: {"cosine": -0.2}, C: {"cosine": -0.3}}, policy=policy)
    assert found.sites == {C} and "cosine below -0.2" in found.held[0].reason


@pytest.mark.parametrize("scores", [{}, {A: {"krum": 1.0}, B: {"krum": 9.0}}, {A: {"distance": 1.0}}])
def test_rounds_that_cannot_tell_change_nothing(scores):
    before = after(FAR)
    assert judge(KRUM, before, RoundNumber(2), scores) == before


def test_without_a_policy_nobody_is_suspected():
    assert after(FAR, FAR, FAR, policy=None) == Suspicion()


def test_a_release_is_obeyed_once_and_clears_the_strikes():
    held = after(FAR, FAR)
    freed = release(held, D, 1)
    assert not freed.held and freed.releases == {D: 1} and release(freed, D, 1) == freed
    again = after(FAR, FAR, before=freed)
    assert again.held[0].releases == 1 and release(again, D, 1) == again and not release(again, D, 2).held


def test_a_release_of_a_site_that_is_not_held_is_remembered():
    assert release(after(FAR), D, 1) == Suspicion(releases={D: 1})


def test_it_survives_json_with_the_record_of_its_round():
    found = release(after(FAR, FAR, {**CALM, A: {"krum": 9.0}}), B, 2)
    record = RoundRecord(
        round=RoundNumber(3), epoch=Epoch(1), started_at=0, seconds=1, model_digest="", quarantined=found.held
    )
    written = json.loads(json.dumps([found.to_json(), record.to_json()]))
    assert Suspicion.from_json(written[0], RoundRecord.from_json(written[1])) == found
    with pytest.raises(ValueError, match="not a suspicion"):
        Suspicion.from_json({}, record)


@given(st.lists(st.lists(st.floats(0.0, 100.0), min_size=4, max_size=4), max_size=20))
def test_at_most_half_are_beyond_the_median_and_who_is_held_stays_held(rounds):
    suspicion = Suspicion()
    for number, values in enumerate(rounds, start=1):
        scores = {site: {"krum": value} for site, value in zip((A, B, C, D), values, strict=True)}
        following = judge(Quarantine(threshold=1.0, rounds=1), suspicion, RoundNumber(number), scores)
        assert len(following.sites - suspicion.sites) <= 2
        assert suspicion.sites <= following.sites
        assert all(isinstance(row, QuarantinedSite) for row in following.held)
        suspicion = following


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"score": "krum", "threshold": 0.5}, "threshold is 0.5 times the median of krum, expected 1 or more"),
        ({"score": "cosine", "threshold": 3.0}, "threshold of a cosine is 3, expected -1 to 1"),
        ({"score": "loud", "threshold": 3.0}, "quarantine.score"),
        ({"score": "krum"}, "quarantine.threshold"),
        ({"threshold": 3.0, "rounds": 0}, "quarantine.rounds"),
    ],
    ids=str,
)
def test_a_policy_that_means_nothing_is_refused_by_name(values, text):
    with pytest.raises(PlanError, match=text):
        Plan(quarantine=values)


def test_a_cosine_to_a_mean_that_one_site_can_turn_is_refused():
    policy = Quarantine(score="cosine", threshold=0.0)
    check_quarantine(Plan(quarantine=policy, rule="median"), updates=5)
    with pytest.raises(PlanError, match="quarantine by cosine needs a robust rule"):
        check_quarantine(Plan(quarantine=policy), updates=None)


def test_a_policy_that_could_never_act_is_refused_with_what_to_change():
    plan = Plan(quarantine=KRUM, byzantine=2)
    check_quarantine(plan, updates=None)
    check_quarantine(plan, updates=5)
    with pytest.raises(PlanError, match="quarantine by krum needs rounds of 5 updates, and at most 4 make one"):
        check_quarantine(plan, updates=4)


@pytest.mark.parametrize(
    ("plan", "lower"),
    [
        ({"minimum_sites": 10}, r"minimum_sites \(10\)"),
        ({"sites": 10, "minimum_sites": 10}, r"minimum_sites \(10\), or raise sites"),
        ({"sites": 10, "minimum_sites": 8, "quorum": 10}, r"quorum \(10\)"),
        ({"sites": 10, "minimum_sites": 10, "quorum": 10}, r"minimum_sites \(10\) and quorum \(10\)"),
    ],
)
def test_a_policy_whose_first_held_site_would_stop_the_experiment_is_refused(plan, lower):
    with pytest.raises(PlanError, match=f"10 sites are needed of 10 wanted.*lower {lower}"):
        check_quarantine(Plan(quarantine=KRUM, **plan), updates=None)


def test_a_policy_with_a_site_to_spare_is_accepted():
    check_quarantine(Plan(quarantine=KRUM, sites=10, minimum_sites=9, quorum=9), updates=10)
    check_quarantine(Plan(quarantine=KRUM), updates=None)


def test_the_policy_is_there_where_the_plan_is():
    assert federation.Quarantine is Quarantine and "Quarantine" in federation.__all__
