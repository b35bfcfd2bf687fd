"""Seeds and the sampling drawn from them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from federation.names import SiteName
from federation.rounds.randomness import derive_seed, stream
from federation.rounds.sampling import draw_sites

SITES = [SiteName(f"site-{number}") for number in range(10)]


def test_seeds_are_those_of_every_release():
    assert derive_seed(0, 1, "site-a", "shuffle") == 7716440167675151508
    assert derive_seed(0, 1, "site-a", "shuffle") < 2**64


def test_different_names_give_different_seeds_even_when_their_text_runs_together():
    names = itertools.product((0, 1), (1, 11), ("a", "a,1", ""), ("x", "1"))
    seeds = [derive_seed(*name) for name in names]
    assert len(set(seeds)) == len(seeds)


def test_a_stream_repeats():
    assert stream(1, 2, "a", "b").random() == stream(1, 2, "a", "b").random()


@given(st.permutations(SITES), st.integers(1, 10), st.integers(1, 1000))
def test_the_draw_depends_on_the_set_of_sites_only(order, sample, round_number):
    drawn = draw_sites(order, sample=sample, seed=3, round_number=round_number, attempt=1)
    assert drawn == draw_sites(SITES, sample=sample, seed=3, round_number=round_number, attempt=1)
    assert len(drawn) == sample and list(drawn) == sorted(set(drawn))


def test_every_site_is_drawn_in_its_turn_and_a_retry_draws_anew():
    draws = [draw_sites(SITES, sample=2, seed=0, round_number=number, attempt=1) for number in range(1, 60)]
    assert set(itertools.chain(*draws)) == set(SITES)
    again = [draw_sites(SITES, sample=2, seed=0, round_number=number, attempt=2) for number in range(1, 60)]
    assert draws != again


def test_without_a_sample_every_site_is_asked():
    assert draw_sites(reversed(SITES), sample=None, seed=0, round_number=1, attempt=1) == tuple(SITES)
