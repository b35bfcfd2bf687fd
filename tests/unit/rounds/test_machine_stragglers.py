"""What a site that is late costs the others: its own deadline, and no more."""

from __future__ import annotations

import pytest

from federation.names import Attempt, RoundNumber
from federation.plan import Plan
from federation.rounds import events as ev

from .stories import A, B, C, D, has, run_round, started, the

QUORUM = {"sites": 3, "quorum": 2, "rounds": 9}
FIRST = (RoundNumber(1), Attempt(1))


def evaluating(machine, *counted):
    """Let the open round close at its deadline with these updates; return the actions that ask for evaluations."""
    for site in counted:
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.DeadlinePassed())
    return machine.step(ev.Combined())


def evaluated(machine, *sites, loss=1.0):
    """Let these sites evaluate; return the last actions."""
    actions = []
    for site in sites:
        actions = machine.step(ev.SiteEvaluated(site, 10, {"loss": loss}))
    return actions


def test_evaluation_asks_a_site_that_is_late_and_does_not_wait_for_it():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    assert the(evaluating(machine, A, B), ev.AskEvaluate).sites == (A, B, C)
    commit = the(evaluated(machine, A, B), ev.Commit)
    assert list(commit.evaluations) == [A, B]
    assert commit.unevaluated == {C: "still at work since round 1"}
    assert the(machine.step(ev.Committed()), ev.AskTrain).sites == (A, B, C), "it is drawn like the others"


def test_a_late_site_that_answers_while_others_are_waited_for_has_its_say():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    evaluating(machine, A, B)
    evaluated(machine, A, C)
    commit = the(evaluated(machine, B), ev.Commit)
    assert list(commit.evaluations) == [A, B, C] and not commit.unevaluated


FREE = {
    "its update is refused as late": ev.SiteFree(C, *FIRST),
    "it says that it failed": ev.SiteFree(C, FIRST[0]),
    "a new session says that it is at nothing": ev.SiteReady(C),
}


@pytest.mark.parametrize("event", FREE.values(), ids=FREE)
@pytest.mark.parametrize("is_early", [True, False], ids=["before evaluation", "in evaluation"])
def test_a_late_site_that_is_heard_of_is_waited_for(event, is_early):
    machine, _ = started(Plan(**QUORUM), A, B, C)
    for site in (A, B):
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.DeadlinePassed())
    if is_early:
        machine.step(event)
    machine.step(ev.Combined())
    if not is_early:
        machine.step(event)
    assert not evaluated(machine, A, B)
    assert list(the(evaluated(machine, C), ev.Commit).evaluations) == [A, B, C]


def test_a_late_site_that_was_heard_of_and_is_silent_then_is_waited_for_until_the_deadline():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    evaluating(machine, A, B)
    machine.step(ev.SiteFree(C, *FIRST))
    assert not evaluated(machine, A, B)
    assert the(machine.step(ev.DeadlinePassed()), ev.Commit).unevaluated == {C: "no answer in time"}


def test_a_new_session_of_a_site_that_is_still_at_its_task_does_not_make_it_waited_for():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    evaluating(machine, A, B)
    assert the(machine.step(ev.SiteReady(C, at_work=FIRST)), ev.AskEvaluate).sites == (C,)
    assert the(evaluated(machine, A, B), ev.Commit).unevaluated == {C: "still at work since round 1"}


def test_a_site_that_comes_back_at_work_ends_an_evaluation_that_waited_for_it_alone():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    evaluating(machine, A, B)
    machine.step(ev.SiteFree(C, *FIRST))
    evaluated(machine, A, B)
    assert has(machine.step(ev.SiteReady(C, at_work=FIRST)), ev.Commit)


def test_a_site_late_in_an_earlier_round_is_not_waited_for_though_it_was_not_asked_since():
    machine, actions = started(Plan(sites=4, sample=3, quorum=2, rounds=40), A, B, C, D)
    drawn = the(actions, ev.AskTrain).sites
    late = drawn[0]
    rest = [site for site in (A, B, C, D) if site != late]
    while late in drawn:
        evaluating(machine, *[site for site in drawn if site != late])
        evaluated(machine, *rest)
        drawn = the(machine.step(ev.Committed()), ev.AskTrain).sites
    evaluating(machine, *drawn)
    commit = the(evaluated(machine, *rest), ev.Commit)
    assert late not in commit.standings
    assert commit.unevaluated == {late: "still at work since round 1"}


def test_a_new_session_that_does_not_know_yet_that_its_update_is_in_does_not_count_as_at_work():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.SiteReady(A, at_work=FIRST))
    for event in (ev.UpdateAdmitted(B), ev.UpdateAdmitted(C), ev.Combined()):
        machine.step(event)
    assert not evaluated(machine, B, C)


def test_an_answer_to_an_older_task_leaves_a_site_at_work_on_the_newer_one():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    evaluating(machine, A, B)
    evaluated(machine, A, B)
    machine.step(ev.Committed())
    evaluating(machine, A, B)
    machine.step(ev.SiteFree(C, *FIRST))
    assert the(evaluated(machine, A, B), ev.Commit).unevaluated == {C: "still at work since round 2"}


def test_a_site_whose_next_update_counts_is_waited_for_again():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    evaluating(machine, A, B)
    evaluated(machine, A, B)
    machine.step(ev.Committed())
    for site in (A, B, C):
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.Combined())
    assert not evaluated(machine, A, B)
    assert has(evaluated(machine, C), ev.Commit)


@pytest.mark.parametrize(
    "end", [ev.UpdateRefused(C, "norm"), ev.SiteFailed(C, "ValueError")], ids=["refused", "failed"]
)
def test_a_site_whose_next_task_ends_otherwise_is_waited_for_again(end):
    machine, _ = started(Plan(**QUORUM), A, B, C)
    evaluating(machine, A, B)
    evaluated(machine, A, B)
    machine.step(ev.Committed())
    for event in (ev.UpdateAdmitted(A), ev.UpdateAdmitted(B), end, ev.Combined()):
        machine.step(event)
    assert not evaluated(machine, A, B)


def test_a_site_late_in_a_missed_attempt_is_not_waited_for_either():
    machine, _ = started(Plan(sites=3, sample=3, quorum=2, rounds=9), A, B, C)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.DeadlinePassed())
    machine.step(ev.MissRecorded())
    assert the(evaluating(machine, A, B), ev.AskEvaluate).sites == (A, B, C)
    assert has(evaluated(machine, A, B), ev.Commit)


def test_an_evaluation_that_only_sites_at_work_could_make_is_over_at_once():
    machine, _ = started(Plan(sites=2, quorum=1, rounds=9), A, B)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.DeadlinePassed())
    machine.step(ev.SiteLost(A))
    commit = the(machine.step(ev.Combined()), ev.Commit)
    assert commit.metrics == {} and commit.unevaluated == {B: "still at work since round 1"}


def test_it_is_said_of_each_site_why_it_has_no_say():
    machine, _ = started(Plan(sites=4, rounds=9), A, B, C, D)
    for site in (A, B, C, D):
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.Combined())
    machine.step(ev.SiteFailed(C, "ValueError"))
    machine.step(ev.SiteLost(B))
    evaluated(machine, A)
    commit = the(machine.step(ev.DeadlinePassed()), ev.Commit)
    assert commit.unevaluated == {B: "connection lost", C: "ValueError", D: "no answer in time"}


def test_what_is_said_of_one_evaluation_is_not_said_of_the_next():
    machine, _ = started(Plan(sites=2, rounds=9), A, B)
    for site in (A, B):
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.Combined())
    machine.step(ev.SiteFailed(B, "ValueError"))
    assert the(evaluated(machine, A), ev.Commit).unevaluated == {B: "ValueError"}
    machine.step(ev.Committed())
    for site in (A, B):
        machine.step(ev.UpdateAdmitted(site))
    machine.step(ev.Combined())
    assert the(evaluated(machine, A, B), ev.Commit).unevaluated == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_restarted_aggregator_hears_from_the_sites_who_is_at_work(seed):
    plan = Plan(sites=3, sample=2, quorum=1, rounds=9, seed=seed)
    machine, _ = started(plan, resume=ev.Resume(round=RoundNumber(2), expected=(A, B, C)))
    machine.step(ev.SiteReady(A))
    machine.step(ev.SiteReady(C, at_work=FIRST))
    drawn = the(machine.step(ev.SiteReady(B)), ev.AskTrain).sites
    evaluating(machine, *[site for site in drawn if site != C])
    assert the(evaluated(machine, A, B), ev.Commit).unevaluated == {C: "still at work since round 1"}


def test_without_stragglers_a_round_is_what_it_was():
    machine, _ = started(Plan(sites=3, rounds=9), A, B, C)
    assert the(run_round(machine, A, B, C), ev.AskTrain).sites == (A, B, C)


def test_a_site_that_is_late_again_is_at_work_since_it_was_late_first():
    machine, _ = started(Plan(**QUORUM), A, B, C)
    for _ in range(2):
        evaluating(machine, A, B)
        commit = the(evaluated(machine, A, B), ev.Commit)
        assert commit.unevaluated == {C: "still at work since round 1"}
        machine.step(ev.Committed())
