"""Who is there: what a machine has written down of it, whom a restart waits for, and that it draws as before."""

from __future__ import annotations

import pytest

from federation.names import Attempt, RoundNumber
from federation.plan import Plan
from federation.rounds import events as ev
from federation.rounds.history import QuarantinedSite
from federation.rounds.machine import REJOIN_S, RoundMachine
from federation.rounds.quarantine import Suspicion

from .stories import A, B, C, D, E, has, run_round, started, the

ALL = (A, B, C, D, E)
FIRST = (RoundNumber(1), Attempt(1))


def notes(actions):
    return [action for action in actions if isinstance(action, ev.RecordPresent)]


def test_who_is_there_is_written_down_with_the_first_draw_and_before_anybody_is_asked():
    machine = RoundMachine(Plan(sites=2))
    assert not notes(machine.start() + machine.step(ev.SiteReady(A)))
    actions = machine.step(ev.SiteReady(B))
    note, ask = the(actions, ev.RecordPresent), the(actions, ev.AskTrain)
    assert note == ev.RecordPresent((A, B), None)
    assert actions.index(note) < actions.index(ask)
    assert not notes(run_round(machine, A, B)), "nothing has changed"


def test_who_comes_and_who_is_lost_is_written_down_at_once():
    machine, _ = started(Plan(sites=2), A, B)
    assert notes(machine.step(ev.SiteReady(C))) == [ev.RecordPresent((A, B, C), FIRST)]
    assert not notes(machine.step(ev.SiteReady(C))), "that is known"
    assert notes(machine.step(ev.SiteLost(B))) == [ev.RecordPresent((A, C), FIRST)]
    assert not notes(machine.step(ev.SiteFailed(C, "ValueError"))), "it failed once, and is there"
    assert notes(machine.step(ev.SiteFailed(C, "ValueError", permanent=True))) == [ev.RecordPresent((A,), FIRST)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sampler", ["uniform", "weighted", "fraction:0.4"])
def test_a_restart_waits_for_sites_that_were_not_asked_and_draws_as_without_it(seed, sampler):
    plan = Plan(sites=5, sample=None if ":" in sampler else 2, sampler=sampler, seed=seed, minimum_sites=1, rounds=4)
    machine, actions = started(plan, *ALL)
    calm = the(run_round(machine, *the(actions, ev.AskTrain).sites), ev.AskTrain)
    for last in ALL:
        again = RoundMachine(plan, ev.Resume(round=RoundNumber(2), expected=ALL, pool=ALL))
        again.start()
        for site in ALL:
            if site != last:
                assert not has(again.step(ev.SiteReady(site)), ev.AskTrain), f"{last} is awaited"
        assert the(again.step(ev.SiteReady(last)), ev.AskTrain) == calm


def test_a_restart_in_the_first_round_waits_for_more_than_it_needs_if_more_were_there():
    machine, _ = started(Plan(sites=1), A, resume=ev.Resume(expected=(A, B), pool=(A, B)))
    assert machine.phase is ev.Phase.JOINING
    assert the(machine.step(ev.SiteReady(B)), ev.AskTrain).sites == (A, B)


def test_a_site_that_came_after_the_draw_does_not_change_it_when_it_is_made_again():
    plan = Plan(sites=4, sample=2, minimum_sites=1)
    machine, actions = started(plan, A, B, C, D)
    drawn = the(actions, ev.AskTrain).sites
    assert the(machine.step(ev.SiteReady(E)), ev.RecordPresent) == ev.RecordPresent(ALL, FIRST)
    again, actions = started(plan, E, A, B, C, D, resume=ev.Resume(expected=ALL, pool=(A, B, C, D)))
    assert the(actions, ev.AskTrain).sites == drawn
    assert not notes(actions), "the journal has both"
    calm, wild = (the(run_round(each, *drawn), ev.AskTrain).sites for each in (machine, again))
    assert calm == wild, "and then it takes part"


def test_a_site_that_comes_first_after_the_restart_waits_for_the_next_draw_too():
    plan = Plan(sites=4, sample=2, minimum_sites=1)
    drawn = the(started(plan, A, B, C, D)[1], ev.AskTrain).sites
    resume = ev.Resume(expected=(A, B, C, D), pool=(A, B, C, D))
    _, actions = started(plan, E, A, B, C, D, resume=resume)
    assert the(actions, ev.AskTrain).sites == drawn
    assert the(actions, ev.RecordPresent) == ev.RecordPresent(ALL, FIRST), "drawn from those of before"


def test_a_draw_whose_sites_are_not_all_back_is_made_anew_from_whoever_is_there():
    resume = ev.Resume(expected=(A, B, C), pool=(A, B, C))
    machine, actions = started(Plan(sites=3, minimum_sites=1), A, D, resume=resume)
    assert not has(actions, ev.AskTrain)
    actions = machine.step(ev.DeadlinePassed())
    assert the(actions, ev.AskTrain).sites == (A, D)
    assert the(actions, ev.RecordPresent) == ev.RecordPresent((A, D), None)


def test_nobody_waits_for_a_site_that_was_lost_before_the_restart():
    resume = ev.Resume(round=RoundNumber(2), expected=(A, B), pool=(A, B, C))
    _, actions = started(Plan(sites=3, minimum_sites=1), A, B, resume=resume)
    assert the(actions, ev.AskTrain).sites == (A, B)


def test_where_all_were_lost_before_a_restart_the_first_that_are_enough_go_on():
    machine, actions = started(Plan(sites=3, minimum_sites=2), A, resume=ev.Resume(round=RoundNumber(2)))
    assert not has(actions, ev.AskTrain)
    assert the(machine.step(ev.SiteReady(B)), ev.AskTrain).sites == (A, B)


def test_a_site_that_is_not_back_in_time_is_not_waited_for_any_more():
    resume = ev.Resume(round=RoundNumber(2), expected=(A, B), pool=(A, B))
    machine = RoundMachine(Plan(sites=2, minimum_sites=1), resume)
    assert the(machine.start(), ev.StartTimer).seconds == REJOIN_S
    machine.step(ev.SiteReady(A))
    assert notes(machine.step(ev.DeadlinePassed())) == [ev.RecordPresent((A,), None)], "nor after the next restart"


def test_a_site_in_quarantine_is_neither_waited_for_nor_missed_in_the_draw():
    plan = Plan(sites=5, sample=2, minimum_sites=1)
    held = Suspicion(held=(QuarantinedSite(site=E, since_round=RoundNumber(1)),))
    resume = ev.Resume(round=RoundNumber(2), expected=ALL, pool=ALL, suspicion=held)
    before, after = (started(plan, *sites, resume=resume)[1] for sites in ((E, A, B, C, D), (A, B, C, D)))
    assert the(before, ev.AskTrain).sites == the(after, ev.AskTrain).sites


@pytest.mark.parametrize("seed", range(4))
def test_a_restart_leaves_out_whom_an_earlier_attempt_refused_and_still_tells_of_it(seed):
    plan = Plan(sites=5, sample=3, minimum_sites=3, seed=seed)
    machine, actions = started(plan, *ALL)
    first = the(actions, ev.AskTrain).sites
    machine.step(ev.UpdateRefused(first[0], "norm", norm=9.0))
    machine.step(ev.UpdateAdmitted(first[1]))
    miss = the(machine.step(ev.SiteFailed(first[2], "KeyError")), ev.RecordMiss)
    calm = the(machine.step(ev.MissRecorded()), ev.AskTrain)
    assert first[0] not in calm.sites
    resume = ev.Resume(attempt=Attempt(2), expected=ALL, pool=ALL, standings=miss.standings)
    again, actions = started(plan, *ALL, resume=resume)
    assert the(actions, ev.AskTrain) == calm
    assert again.standings == machine.standings


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("is_before", [True, False], ids=["before the kill", "while sites come back"])
def test_a_site_released_after_the_draw_does_not_change_it_when_it_is_made_again(seed, is_before):
    plan = Plan(sites=5, sample=2, minimum_sites=1, seed=seed)
    held = Suspicion(held=(QuarantinedSite(site=B, since_round=RoundNumber(1)),))
    begun = {"round": RoundNumber(2), "expected": ALL, "pool": ALL}
    machine, actions = started(plan, *ALL, resume=ev.Resume(**begun, suspicion=held))
    drawn = the(actions, ev.AskTrain).sites
    release = the(machine.step(ev.SiteReleased(B, 1)), ev.RecordRelease)
    assert release == ev.RecordRelease(B, 1, (RoundNumber(2), Attempt(1)))
    if is_before:
        pool = tuple(site for site in ALL if site != B)
        resume = ev.Resume(**{**begun, "pool": pool}, suspicion=machine.suspicion)
        again, actions = started(plan, *ALL, resume=resume)
    else:
        again, _ = started(plan, *ALL[:-1], resume=ev.Resume(**begun, suspicion=held))
        assert the(again.step(ev.SiteReleased(B, 1)), ev.RecordRelease) == release
        actions = again.step(ev.SiteReady(ALL[-1]))
    assert the(actions, ev.AskTrain).sites == drawn
    calm, wild = (the(run_round(each, *drawn), ev.AskTrain).sites for each in (machine, again))
    assert calm == wild, "and then it may be drawn"
