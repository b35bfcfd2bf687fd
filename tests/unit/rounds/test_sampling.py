"""The laws of each sampler, and how a round draws its sites."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import PlanError
from federation.names import RoundNumber, SiteName
from federation.plan import Plan
from federation.rounds import events as ev
from federation.rounds import randomness, sampling
from federation.rounds.machine import RoundMachine
from federation.rounds.sampling import check_sampler, draw_sites, load_sampler

SITES = tuple(SiteName(f"site-{number:02d}") for number in range(20))


def drawn(sampler, number=1, *, sites=SITES, sample=None, seed=0, attempt=1, **options):
    return draw_sites(sites, sample=sample, seed=seed, round_number=number, attempt=attempt, sampler=sampler, **options)


def test_the_uniform_draw_is_that_of_plans_before_there_were_samplers():
    stream = randomness.stream(3, 5, "", "sampling/2")
    expected = tuple(sorted(stream.sample(sorted(SITES), 4)))
    assert draw_sites(SITES, sample=4, seed=3, round_number=5, attempt=2) == expected


@given(
    sampler=st.sampled_from(["uniform", "fraction:0.3", "poisson:0.2", "weighted", "available"]),
    order=st.permutations(SITES),
    number=st.integers(1, 99),
)
def test_a_draw_depends_on_the_set_of_candidates_only_and_is_in_name_order(sampler, order, number):
    got = drawn(sampler, number, sites=order, sample=6)
    assert got == drawn(sampler, number, sample=6) and list(got) == sorted(set(got)) and got


def test_fraction_asks_the_floor_of_its_share_and_at_least_one():
    assert [len(drawn(f"fraction:{share}")) for share in (0.01, 0.29, 0.3, 0.99, 1)] == [1, 5, 6, 19, 20]
    hundred = [SiteName(f"s{number}") for number in range(100)]
    assert len(drawn("fraction:0.29", sites=hundred)) == 29, "0.29 · 100 is less than 29 in floating point"
    assert len(drawn("fraction:0.1", least=5)) == 5


def test_poisson_asks_each_site_by_itself_with_its_probability():
    draws = [drawn("poisson:0.25", number) for number in range(1, 801)]
    counts = Counter(site for draw in draws for site in draw)
    # 5 σ of a binomial of 800 draws is 61.
    assert all(abs(counts[site] - 200) < 62 for site in SITES)
    sizes = Counter(map(len, draws))
    assert len(sizes) > 6, "how many are asked is left to chance"


def test_poisson_draws_again_until_enough_came_out():
    assert all(len(drawn("poisson:0.01", number)) >= 1 for number in range(1, 100))
    assert all(len(drawn("poisson:0.05", number, least=3)) >= 3 for number in range(1, 100))
    assert len(drawn("poisson:1e-9")) == 1, "and ends, however small the probability"


def test_weighted_prefers_sites_with_more_examples_and_draws_without_replacement():
    weights = {site: 900 if site == SITES[3] else 10 for site in SITES}
    draws = [drawn("weighted", number, sample=4, weights=weights) for number in range(1, 301)]
    counts = Counter(site for draw in draws for site in draw)
    assert all(len(draw) == 4 == len(set(draw)) for draw in draws)
    assert counts[SITES[3]] > 290 and max(counts[site] for site in SITES if site != SITES[3]) < 90
    assert len(drawn("weighted", sample=4)) == 4, "unknown weights are equal ones"
    assert drawn("weighted") == SITES


def test_the_first_weighted_pick_is_proportional_to_the_weights():
    rng, rule = randomness.stream(5, 1, "", "test"), load_sampler("weighted")
    weights = dict(zip(SITES[:3], (1, 2, 5), strict=True))
    draw = sampling.Draw(candidates=SITES[:3], count=1, weights=weights, rng=rng)
    counts = Counter(rule.draw(draw)[0] for _ in range(4000))
    # 5 σ of a binomial of 4000 draws is at most 158.
    assert [abs(counts[site] - 500 * weight) < 158 for site, weight in weights.items()] == [True] * 3


def test_available_asks_everyone_who_is_there():
    assert drawn("available") == SITES
    assert drawn("available", sites=SITES[15:]) == SITES[15:]
    assert drawn("available", sites=()) == ()


@pytest.mark.parametrize(
    ("sampler", "text"),
    [
        ("unifrom", "there is no sampler 'unifrom', only available, fraction"),
        ("fraction", "such as fraction:0.1"),
        ("poisson:1.5", "more than 0 and at most 1"),
        ("weighted:2", "takes no parameters"),
        ("poisson:q", "not a number"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(sampler, text):
    with pytest.raises(PlanError, match=text):
        check_sampler(Plan(sampler=sampler))


def test_a_sampler_that_decides_how_many_does_not_go_with_sample_nor_poisson_with_a_quorum():
    with pytest.raises(PlanError, match="leave out sample"):
        check_sampler(Plan(sampler="fraction:0.5", sites=4, sample=2))
    with pytest.raises(PlanError, match="quorum is 2"):
        RoundMachine(Plan(sampler="poisson:0.5", sites=4, quorum=2))
    check_sampler(Plan(sampler="fraction:0.5", sites=4, quorum=2))
    check_sampler(Plan(sampler="weighted", sites=4, sample=2, quorum=2))


def test_an_installed_sampler_is_found_by_its_name(monkeypatch):
    class Point:
        name = "first"

        def load(self):
            return First

    class First:
        takes_count = True

        def __init__(self, *skipped):
            self.skipped = int(sum(skipped))

        def draw(self, draw, /):
            return tuple(draw.candidates[self.skipped :][: draw.count])

    monkeypatch.setattr(sampling, "entry_points", lambda group: [Point()] if group == "federation.samplers" else [])
    load_sampler.cache_clear()
    assert drawn("first:2", sample=3) == SITES[2:5]
    load_sampler.cache_clear()


def asked(machine, sites=SITES):
    """Start a machine with its sites; return whom it asks."""
    machine.start()
    for site in sites:
        actions = machine.step(ev.SiteReady(site))
    return next((action.sites for action in actions if isinstance(action, ev.AskTrain)), ())


def test_a_round_draws_by_the_plans_sampler():
    plan = Plan(sites=20, sampler="fraction:0.2", seed=4)
    assert asked(RoundMachine(plan)) == drawn("fraction:0.2", seed=4)
    plan = Plan(sites=20, sampler="weighted", sample=3)
    weights = {site: 10**9 if site in SITES[5:8] else 1 for site in SITES}
    assert asked(RoundMachine(plan, weights=weights)) == SITES[5:8]


def test_a_round_that_the_method_needs_all_for_asks_all():
    machine = RoundMachine(Plan(sites=20, sample=3, evaluate_every=0), asks_all=lambda number: number == 1)
    assert asked(machine) == SITES
    for site in SITES:
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.Combined())
    (ask,) = [action for action in machine.step(ev.Committed()) if isinstance(action, ev.AskTrain)]
    assert len(ask.sites) == 3


def test_fewer_sites_by_the_luck_of_the_draw_do_not_make_an_experiment_degraded():
    machine = RoundMachine(Plan(sites=20, sampler="poisson:0.3", rounds=1, evaluate_every=0))
    for site in asked(machine):
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.Combined())
    (finish,) = [action for action in machine.step(ev.Committed()) if isinstance(action, ev.Finish)]
    assert finish.outcome == "completed" and not finish.is_degraded


def test_after_a_restart_the_same_poisson_draw_is_asked_but_for_those_whose_updates_are_in():
    plan = Plan(sites=20, sampler="poisson:0.4", seed=9)
    first = asked(RoundMachine(plan))
    resume = ev.Resume(round=RoundNumber(1), admitted=first[:2])
    machine = RoundMachine(plan, resume)
    assert asked(machine) == first[2:] and machine.asked == first
