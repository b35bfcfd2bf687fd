"""The round machine where sites leave, come late or come back, and where it is started again itself."""

from __future__ import annotations

import pytest

from federation.names import Attempt, RoundNumber
from federation.plan import Plan
from federation.rounds import events as ev
from federation.rounds.machine import REJOIN_S, RoundMachine

from .stories import A, B, C, D, E, has, run_round, started, the


def test_too_few_at_the_join_timeout_fails_with_both_numbers():
    machine, _ = started(Plan(sites=3, minimum_sites=2), A)
    finish = the(machine.step(ev.DeadlinePassed()), ev.Finish)
    assert finish.outcome == "failed" and "1 sites joined" in finish.reason and "needs 2" in finish.reason


def test_a_site_lost_without_quorum_leaves_the_round_to_the_remaining_sites():
    machine, _ = started(Plan(sites=3, minimum_sites=2), A, B, C)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.SiteLost(B))
    assert has(machine.step(ev.UpdateAdmitted(C)), ev.RecordMiss)
    assert the(machine.step(ev.MissRecorded()), ev.AskTrain).sites == (A, C)
    machine.step(ev.UpdateAdmitted(A))
    assert the(machine.step(ev.UpdateAdmitted(C)), ev.Combine).sites == (A, C)


def test_too_few_sites_pause_the_experiment_until_they_are_back():
    machine, _ = started(Plan(minimum_sites=2), A, B)
    machine.step(ev.SiteFailed(A, "OSError", permanent=True))
    machine.step(ev.SiteLost(B))
    actions = machine.step(ev.MissRecorded())
    assert machine.phase is ev.Phase.PAUSED
    assert the(actions, ev.StartTimer).seconds == 3600
    assert not has(machine.step(ev.SiteReady(A)), ev.AskTrain)
    assert the(machine.step(ev.SiteReady(B)), ev.AskTrain).sites == (A, B)


def test_a_pause_that_lasts_too_long_fails_the_experiment():
    machine, _ = started(Plan(minimum_sites=1), A)
    machine.step(ev.SiteLost(A))
    machine.step(ev.MissRecorded())
    assert the(machine.step(ev.DeadlinePassed()), ev.Finish).outcome == "failed"


def test_a_quorum_larger_than_the_connected_sites_pauses_instead_of_failing():
    machine, _ = started(Plan(sites=3, minimum_sites=1, quorum=2), A, B, C)
    for site in (A, B):
        machine.step(ev.SiteLost(site))
    machine.step(ev.SiteFailed(C, "ValueError"))
    machine.step(ev.MissRecorded())
    assert machine.phase is ev.Phase.PAUSED


def test_a_site_that_comes_back_while_the_round_is_open_is_asked_again():
    machine, _ = started(Plan(sites=2, quorum=1), A, B)
    machine.step(ev.SiteLost(A))
    assert the(machine.step(ev.SiteReady(A)), ev.AskTrain).sites == (A,)
    machine.step(ev.UpdateAdmitted(A))
    assert not has(machine.step(ev.SiteReady(A)), ev.AskTrain), "its update is in"


def test_a_site_that_joins_late_waits_for_the_next_round():
    machine, _ = started(Plan(sites=1), A)
    assert not has(machine.step(ev.SiteReady(B)), ev.AskTrain)
    assert the(run_round(machine, A), ev.AskTrain).sites == (A, B)


def test_evaluation_goes_on_without_a_site_that_fails_or_is_silent():
    machine, _ = started(Plan(sites=3, rounds=1), A, B, C)
    for site in (A, B, C):
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.Combined())
    machine.step(ev.SiteFailed(A, "ValueError"))
    machine.step(ev.SiteEvaluated(B, 5, {"loss": 3.0}))
    commit = the(machine.step(ev.DeadlinePassed()), ev.Commit)
    assert commit.metrics == {"loss": 3.0} and list(commit.evaluations) == [B]


def test_a_restart_keeps_admitted_updates_and_waits_for_the_sites_it_had():
    resume = ev.Resume(round=RoundNumber(3), attempt=Attempt(2), admitted=(A,), expected=(A, B))
    machine, actions = started(Plan(sites=2), resume=resume)
    assert the(actions, ev.StartTimer).seconds == REJOIN_S
    assert not machine.step(ev.SiteReady(B)), "the other is waited for, though its update is in"
    actions = machine.step(ev.SiteReady(A))
    assert the(actions, ev.AskTrain) == ev.AskTrain(RoundNumber(3), Attempt(2), (B,))
    assert the(machine.step(ev.UpdateAdmitted(B)), ev.Combine).sites == (A, B)


def test_a_restart_with_every_update_in_asks_nobody():
    resume = ev.Resume(round=RoundNumber(2), admitted=(A, B), expected=(A, B))
    machine = RoundMachine(Plan(sites=2), resume)
    machine.start()
    machine.step(ev.SiteReady(A))
    actions = machine.step(ev.SiteReady(B))
    assert not has(actions, ev.AskTrain)
    assert the(actions, ev.Combine).sites == (A, B)


@pytest.mark.parametrize("sampler", ["uniform", "weighted"])
@pytest.mark.parametrize("seed", range(5))
def test_a_restart_asks_the_sites_that_were_drawn_before_it(sampler, seed):
    plan = Plan(sites=5, sample=3, seed=seed, sampler=sampler)
    before = the(started(plan, A, B, C, D, E)[1], ev.AskTrain).sites
    for admitted in before:
        machine, actions = started(plan, A, B, C, D, E, resume=ev.Resume(admitted=(admitted,)))
        assert set(the(actions, ev.AskTrain).sites) == set(before) - {admitted}
        assert machine.asked == before


def test_a_restart_that_cannot_draw_as_before_asks_as_many_as_the_plan_says():
    plan = Plan(sites=5, sample=3)
    before = the(started(plan, A, B, C, D, E)[1], ev.AskTrain).sites
    other = next(site for site in (A, B, C, D, E) if site not in before)  # as if other sites had been connected then
    machine, actions = started(plan, A, B, C, D, E, resume=ev.Resume(admitted=(other,)))
    assert len(the(actions, ev.AskTrain).sites) == 2 and len(machine.asked) == 3


def test_a_restart_goes_on_without_sites_that_do_not_come_back():
    machine, _ = started(Plan(minimum_sites=1), A, resume=ev.Resume(round=RoundNumber(2), expected=(A, B)))
    assert the(machine.step(ev.DeadlinePassed()), ev.AskTrain).sites == (A,)


def test_a_restart_after_the_last_commit_only_finishes():
    machine = RoundMachine(Plan(rounds=2), ev.Resume(round=RoundNumber(3)))
    assert the(machine.start(), ev.Finish).outcome == "completed"
