"""The asynchronous machine where sites leave and come back, and where it is started again itself."""

from __future__ import annotations

import pytest

from federation.names import Attempt, RoundNumber
from federation.plan import Plan
from federation.rounds import events as ev
from federation.rounds.events import Phase, Progress

from .asynchronous_stories import QUIET, committed, started
from .stories import A, B, C, D, E, has, the


def test_a_lost_site_is_forgotten_and_starts_with_the_current_version_when_it_is_back():
    machine, _ = started(Plan(sites=2, **QUIET), A, B)
    machine.step(ev.SiteLost(B))
    assert not machine.step(ev.UpdateAdmitted(B)), "its task is over"
    machine.step(ev.UpdateAdmitted(A))
    committed(machine)
    assert the(machine.step(ev.SiteReady(B)), ev.AskTrain) == ev.AskTrain(RoundNumber(2), Attempt(1), (B,))


def test_a_newer_session_of_a_site_at_work_is_told_the_task_it_has():
    machine, _ = started(Plan(sites=2, **QUIET), A, B)
    machine.step(ev.UpdateAdmitted(A))
    committed(machine)
    assert machine.step(ev.SiteReady(B)) == [ev.AskTrain(RoundNumber(1), Attempt(1), (B,))]


def test_too_few_sites_pause_the_experiment_until_they_are_back():
    machine, _ = started(Plan(sites=2, minimum_sites=2, **QUIET), A, B, buffer=2)
    machine.step(ev.SiteLost(A))
    machine.step(ev.UpdateAdmitted(B))
    committed(machine)
    assert machine.phase is Phase.PAUSED
    assert the(machine.step(ev.SiteReady(A)), ev.AskTrain).sites == (A, B)


def test_a_restart_keeps_what_waits_and_what_still_comes():
    resume = ev.Resume(
        round=RoundNumber(5),
        admitted=(B,),
        expected=(A, B, C),
        training=(C,),
        asked={B: (RoundNumber(3), Attempt(1)), C: (RoundNumber(4), Attempt(2))},
    )
    machine, actions = started(Plan(sites=3, **QUIET), A, B, C, resume=resume, buffer=2)
    told, asked = [action for action in actions if isinstance(action, ev.AskTrain)]
    assert told == ev.AskTrain(RoundNumber(4), Attempt(2), (C,)), "what it works on, on the version it has"
    assert asked == ev.AskTrain(RoundNumber(5), Attempt(1), (A,))
    combine = the(machine.step(ev.UpdateAdmitted(C, RoundNumber(4))), ev.Combine)
    assert combine.asked == {B: 3, C: 4} and machine.task_of(C) == (4, 2)


def test_a_site_that_is_not_back_after_a_restart_is_lost_and_nobody_waits_for_it():
    resume = ev.Resume(
        round=RoundNumber(2),
        expected=(A, B),
        training=(A, B),
        asked={A: (RoundNumber(1), Attempt(1)), B: (RoundNumber(2), Attempt(1))},
    )
    machine, actions = started(Plan(sites=2, **QUIET), A, resume=resume, buffer=2)
    assert not has(actions, ev.AskTrain) and machine.training == (A, B), "the other is waited for a little while"
    actions = machine.step(ev.DeadlinePassed())
    assert the(actions, ev.AskTrain) == ev.AskTrain(RoundNumber(1), Attempt(1), (A,))
    assert machine.standings[B] == ev.Standing(progress=Progress.LOST, reason="did not come back")
    assert the(machine.step(ev.UpdateAdmitted(A)), ev.Combine).sites == (A,)


def test_what_comes_before_rounds_go_on_again_is_taken():
    resume = ev.Resume(round=RoundNumber(3), expected=(A, B), training=(A,), asked={A: (RoundNumber(2), Attempt(1))})
    machine, _ = started(Plan(sites=2, **QUIET), A, resume=resume)
    assert machine.is_asked(A) and not machine.step(ev.UpdateAdmitted(A))
    assert the(machine.step(ev.SiteReady(B)), ev.Combine).asked == {A: 2}


def test_a_site_that_comes_back_while_the_experiment_is_paused_is_told_its_task_when_it_goes_on():
    machine, _ = started(Plan(sites=3, minimum_sites=3, **QUIET), A, B, C)
    machine.step(ev.SiteLost(C))
    machine.step(ev.UpdateAdmitted(A))
    committed(machine)
    assert machine.phase is Phase.PAUSED and not has(machine.step(ev.SiteReady(B)), ev.AskTrain)
    told, asked = [action for action in machine.step(ev.SiteReady(C)) if isinstance(action, ev.AskTrain)]
    assert told == ev.AskTrain(RoundNumber(1), Attempt(1), (B,)) and asked.sites == (A, C)


def test_a_restart_goes_on_exactly_as_without_one():
    plan = Plan(sites=4, sample=2, rounds=9, **QUIET)
    machine, _ = started(plan, A, B, C, D)
    for _ in range(3):
        machine.step(ev.UpdateAdmitted(machine.training[0]))
        before = committed(machine)
    # The shell writes its state before the commit is answered; here what was asked since is taken back.
    new = the(before, ev.AskTrain).sites
    still = tuple(site for site in machine.training if site not in new)
    asked = {site: machine.task_of(site) for site in still}
    there = tuple(sorted(machine.connected))
    resume = ev.Resume(round=machine.round, expected=there, training=still, asked=asked, knows_tasks=True)
    _, after = started(plan, A, B, C, D, resume=resume)
    assert the(after, ev.AskTrain) == the(before, ev.AskTrain)


@pytest.mark.parametrize("seed", range(6))
def test_a_restart_in_the_middle_of_a_round_draws_as_it_would_have(seed):
    plan = Plan(sites=5, sample=2, seed=seed, rounds=9, **QUIET)
    machine, actions = started(plan, A, B, C, D, E, buffer=4)
    asked = [the(actions, ev.AskTrain)]
    for _ in range(2):
        asked.append(the(machine.step(ev.UpdateAdmitted(machine.training[0])), ev.AskTrain))
    assert [ask.draws for ask in asked] == [1, 2, 3]
    # Killed when the journal said who was drawn second, and before it said who was third.
    first, second = asked[0].sites, asked[1].sites
    resume = ev.Resume(
        admitted=(first[0],), training=(first[1], *second), draws=2,
        asked=dict.fromkeys((*first, *second), (RoundNumber(1), Attempt(1))),
    )  # fmt: skip
    again, actions = started(plan, A, B, C, D, E, resume=resume, buffer=4)
    assert the(actions, ev.AskTrain).draws == 0, "told again, not drawn"
    third = the(again.step(ev.UpdateAdmitted(again.training[0])), ev.AskTrain)
    assert (third.sites, third.draws) == (asked[2].sites, 3)
