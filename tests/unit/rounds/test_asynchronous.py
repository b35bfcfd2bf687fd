"""The asynchronous machine as a story of events; no clock, no files, no network."""

from __future__ import annotations

import pytest

from federation.errors import PlanError
from federation.names import Attempt, RoundNumber
from federation.plan import EarlyStopping, Plan, Quarantine
from federation.rounds import events as ev
from federation.rounds.asynchronous import TRANSITIONS_ASYNC, AsyncMachine, describe_async_states, machine_for
from federation.rounds.events import Progress
from federation.rounds.machine import RoundMachine

from .asynchronous_stories import QUIET, committed, started
from .stories import A, B, C, D, has, the


def test_with_a_buffer_of_one_every_update_is_a_step_and_the_others_go_on():
    machine, actions = started(Plan(sites=3, **QUIET), A, B, C)
    assert the(actions, ev.AskTrain) == ev.AskTrain(RoundNumber(1), Attempt(1), (A, B, C))
    actions = machine.step(ev.UpdateAdmitted(B))
    assert the(actions, ev.Combine) == ev.Combine(RoundNumber(1), (B,), {B: RoundNumber(1)})
    actions = committed(machine)
    assert the(actions, ev.SendVerdicts).reasons == {B: ""}
    assert the(actions, ev.AskTrain) == ev.AskTrain(RoundNumber(2), Attempt(1), (B,))
    assert machine.training == (A, B, C) and not machine.has_closed


def test_staleness_is_the_number_of_steps_since_a_site_was_asked():
    machine, _ = started(Plan(sites=2, **QUIET), A, B)
    for _ in range(3):
        machine.step(ev.UpdateAdmitted(A))
        committed(machine)
    assert (machine.round, machine.staleness(A), machine.staleness(B)) == (4, 0, 3)
    combine = the(machine.step(ev.UpdateAdmitted(B, RoundNumber(1))), ev.Combine)
    assert combine.round - combine.asked[B] == 3 == machine.staleness(B)
    assert machine.staleness(A) == 1, "what arrives while a version is made counts in the next"


def test_an_update_that_is_too_stale_is_refused_and_its_site_asked_anew_with_the_next_version():
    machine, _ = started(Plan(sites=2, **QUIET), A, B, max_staleness=1)
    for _ in range(2):
        machine.step(ev.UpdateAdmitted(A))
        committed(machine)
    assert not has(machine.step(ev.UpdateAdmitted(B)), ev.Combine)
    machine.step(ev.UpdateAdmitted(A))
    commit = the(machine.step(ev.Combined()), ev.Commit)
    assert commit.standings[B].progress is Progress.REFUSED and "too stale: 2 steps" in commit.standings[B].reason
    actions = machine.step(ev.Committed())
    verdicts = the(actions, ev.SendVerdicts)
    assert verdicts.reasons[A] == "" and "too stale" in verdicts.reasons[B]
    assert verdicts.asked[B] == (1, 1) and the(actions, ev.AskTrain).sites == (A, B)


def test_a_step_takes_the_updates_that_fill_the_buffer_and_nobody_waits_for_the_rest():
    machine, _ = started(Plan(sites=4, **QUIET), A, B, C, D, buffer=2)
    assert not has(machine.step(ev.UpdateAdmitted(D)), ev.Combine)
    assert machine.waiting == (D,) and machine.is_admitted(D) and machine.done == 1
    assert the(machine.step(ev.UpdateAdmitted(B)), ev.Combine).sites == (B, D)


def test_an_update_that_arrives_while_a_version_is_made_waits_for_the_next():
    machine, _ = started(Plan(sites=3, **QUIET), A, B, C)
    machine.step(ev.UpdateAdmitted(C))
    assert machine.is_asked(A)
    assert not machine.step(ev.UpdateAdmitted(B))
    assert not machine.step(ev.UpdateAdmitted(A))
    actions = committed(machine)
    assert the(actions, ev.AskTrain) == ev.AskTrain(RoundNumber(2), Attempt(1), (C,))
    assert the(actions, ev.Combine).sites == (B,), "the first that arrived"
    assert the(committed(machine), ev.Combine).sites == (A,)


def test_a_site_whose_update_waits_is_not_asked_again_before_it_has_counted():
    machine, _ = started(Plan(sites=2, **QUIET), A, B, buffer=2)
    assert not machine.step(ev.UpdateAdmitted(A))
    assert not machine.step(ev.SiteReady(A))
    assert not machine.step(ev.UpdateAdmitted(A)), "nor counted twice"


def test_at_the_deadline_a_step_is_made_of_what_is_in():
    plan = Plan(sites=3, rounds=1, **QUIET)
    machine, _ = started(plan, A, B, C, buffer=3)
    machine.step(ev.UpdateAdmitted(A))
    assert the(machine.step(ev.DeadlinePassed()), ev.Combine).sites == (A,)
    assert the(committed(machine), ev.Finish).is_degraded


def test_a_method_without_deadline_goes_on_while_sites_train():
    machine, _ = started(Plan(sites=3, **QUIET), A, B, C, buffer=2, ends_at_deadline=False)
    machine.step(ev.UpdateAdmitted(A))
    assert machine.step(ev.DeadlinePassed()) == [ev.StartTimer(3600)]
    assert the(machine.step(ev.UpdateAdmitted(B)), ev.Combine).sites == (A, B)


def test_a_deadline_without_any_update_is_a_miss_and_sites_go_on_training():
    machine, _ = started(Plan(sites=2, max_failures=1, **QUIET), A, B)
    assert "no update within 3600 s" in the(machine.step(ev.DeadlinePassed()), ev.RecordMiss).reason
    actions = machine.step(ev.MissRecorded())
    assert not has(actions, ev.AskTrain) and machine.attempt == 2 and machine.training == (A, B)
    machine.step(ev.DeadlinePassed())
    finish = the(machine.step(ev.MissRecorded()), ev.Finish)
    assert finish.outcome == "failed" and "missed its quorum 2 times" in finish.reason


def test_a_buffer_larger_than_the_sites_closes_when_nobody_trains_any_more():
    machine, _ = started(Plan(sites=2, **QUIET), A, B, buffer=10)
    machine.step(ev.UpdateAdmitted(A))
    assert the(machine.step(ev.UpdateAdmitted(B)), ev.Combine).sites == (A, B)
    assert not the(machine.step(ev.Combined()), ev.Commit).score.is_degraded


def test_so_many_train_at_once_as_are_sampled_and_a_free_place_is_filled_at_once():
    machine, actions = started(Plan(sites=4, sample=2, **QUIET), A, B, C, D, buffer=2)
    first = the(actions, ev.AskTrain).sites
    assert len(first) == 2
    actions = machine.step(ev.UpdateAdmitted(first[0]))
    (next_one,) = the(actions, ev.AskTrain).sites
    assert next_one not in first and machine.training == tuple(sorted((first[1], next_one)))


@pytest.mark.parametrize("ends_at_deadline", [True, False])
def test_a_silent_site_loses_its_place_at_the_deadline_and_its_update_is_taken_all_the_same(ends_at_deadline):
    plan = Plan(sites=4, sample=2, max_failures=1, **QUIET)
    machine, actions = started(plan, A, B, C, D, buffer=3, ends_at_deadline=ends_at_deadline)
    ask = the(actions, ev.AskTrain)
    silent, others = ask.sites, tuple(site for site in (A, B, C, D) if site not in ask.sites)
    assert ask.overdue_s == 3600
    assert has(machine.step(ev.DeadlinePassed()), ev.RecordMiss)
    for site in silent:
        assert not machine.step(ev.TaskOverdue(site, ask.round, ask.attempt))
    assert the(machine.step(ev.MissRecorded()), ev.AskTrain).sites == others
    assert machine.overdue == silent and machine.training == (A, B, C, D)
    for site in others:
        machine.step(ev.UpdateAdmitted(site))
    assert the(machine.step(ev.UpdateAdmitted(silent[0])), ev.Combine).asked[silent[0]] == 1
    assert machine.overdue == silent[1:]


def test_a_silent_site_loses_its_place_though_rounds_go_on_closing_before_their_deadlines():
    machine, actions = started(Plan(sites=4, sample=2, rounds=9, **QUIET), A, B, C, D)
    ask = the(actions, ev.AskTrain)
    silent = ask.sites[0]
    for _ in range(5):
        machine.step(ev.UpdateAdmitted(next(site for site in machine.training if site != silent)))
        committed(machine)
        assert silent in machine.training and len(machine.training) == 2
    actions = machine.step(ev.TaskOverdue(silent, ask.round, ask.attempt))
    assert len(the(actions, ev.AskTrain).sites) == 1 and len(machine.training) == 3
    assert not machine.step(ev.TaskOverdue(silent, ask.round, ask.attempt)), "said twice"


def test_the_time_of_a_task_that_is_over_says_nothing_of_the_next_one():
    machine, actions = started(Plan(sites=2, sample=1, rounds=9, **QUIET), A, B)
    ask = the(actions, ev.AskTrain)
    while True:
        machine.step(ev.UpdateAdmitted(machine.training[0]))
        if the(committed(machine), ev.AskTrain).sites == ask.sites:
            break
    assert not machine.step(ev.TaskOverdue(ask.sites[0], ask.round, ask.attempt)) and not machine.overdue


def test_where_all_sites_may_train_at_once_no_task_is_timed():
    _, actions = started(Plan(sites=2, **QUIET), A, B)
    assert the(actions, ev.AskTrain).overdue_s is None


def test_the_draw_is_the_same_for_the_same_story():
    stories = [started(Plan(sites=4, sample=2, seed=seed), D, B, A, C)[1] for seed in (1, 1, 2, 3, 4, 5)]
    asked = [the(actions, ev.AskTrain).sites for actions in stories]
    assert asked[0] == asked[1] and len(set(asked)) > 1


def test_only_contributors_evaluate_and_only_then_they_train_again():
    machine, _ = started(Plan(sites=3), A, B, C, buffer=2)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.UpdateAdmitted(C))
    actions = machine.step(ev.Combined())
    assert the(actions, ev.AskEvaluate).sites == (A, C)
    assert machine.is_evaluating(A) and not machine.is_evaluating(B) and machine.is_asked(B)
    machine.step(ev.SiteEvaluated(A, 10, {"loss": 1.0}))
    actions = machine.step(ev.SiteLost(C))
    assert the(actions, ev.Commit).metrics == {"loss": 1.0}
    assert the(machine.step(ev.Committed()), ev.AskTrain).sites == (A,)


def test_a_contributor_is_waited_for_whatever_its_new_session_says_it_is_at():
    machine, _ = started(Plan(sites=2), A, B)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.Combined())
    assert the(machine.step(ev.SiteReady(A, at_work=(RoundNumber(1), Attempt(1)))), ev.AskEvaluate).sites == (A,)
    assert the(machine.step(ev.SiteEvaluated(A, 1, {"loss": 1.0})), ev.Commit).unevaluated == {}


def test_an_update_of_another_task_than_the_sites_present_one_is_ignored():
    machine, _ = started(Plan(sites=1, **QUIET), A)
    machine.step(ev.UpdateAdmitted(A))
    committed(machine)
    assert not machine.step(ev.UpdateAdmitted(A, RoundNumber(1)))
    assert has(machine.step(ev.UpdateAdmitted(A, RoundNumber(2))), ev.Combine)


def test_what_is_set_aside_while_a_commit_is_written_down_belongs_to_the_next_round():
    machine, _ = started(Plan(sites=3, **QUIET), A, B, C)
    machine.step(ev.UpdateAdmitted(A))
    assert set(the(machine.step(ev.Combined()), ev.Commit).standings) == {A} == set(machine.settling)
    machine.step(ev.UpdateRefused(B, "norm: too long"))
    machine.step(ev.SiteLost(C))
    actions = machine.step(ev.Committed())
    assert the(actions, ev.SendVerdicts).reasons == {A: ""}
    assert the(actions, ev.AskTrain).sites == (A,)
    machine.step(ev.UpdateAdmitted(A))
    commit = the(machine.step(ev.Combined()), ev.Commit)
    assert {site: standing.progress for site, standing in commit.standings.items()} == {
        A: Progress.ADMITTED, B: Progress.REFUSED, C: Progress.LOST,
    }  # fmt: skip
    assert machine.settling == {A: (2, 1), B: (1, 1), C: (1, 1)}
    actions = machine.step(ev.Committed())
    assert the(actions, ev.SendVerdicts).reasons == {A: "", B: "norm: too long"}
    assert the(actions, ev.SendVerdicts).asked[B] == (1, 1) and the(actions, ev.AskTrain).sites == (A, B)


def test_what_is_set_aside_while_a_miss_is_written_down_gets_its_verdict_later():
    machine, _ = started(Plan(sites=2, **QUIET), A, B)
    machine.step(ev.DeadlinePassed())
    machine.step(ev.UpdateRefused(B, "norm: too long"))
    actions = machine.step(ev.MissRecorded())
    assert the(actions, ev.SendVerdicts).reasons == {} and machine.training == (A,)
    machine.step(ev.UpdateAdmitted(A))
    assert the(machine.step(ev.Combined()), ev.Commit).standings[B].progress is Progress.REFUSED
    assert the(machine.step(ev.Committed()), ev.SendVerdicts).reasons[B] == "norm: too long"


def test_when_all_fail_the_round_is_missed_and_all_are_asked_again():
    machine, _ = started(Plan(sites=2, **QUIET), A, B)
    machine.step(ev.SiteFailed(A, "no memory"))
    actions = machine.step(ev.UpdateRefused(B, "not finite"))
    assert "site-a failed (no memory), site-b refused" in the(actions, ev.RecordMiss).reason
    actions = machine.step(ev.MissRecorded())
    assert the(actions, ev.SendVerdicts).reasons == {B: "not finite"}
    assert the(actions, ev.AskTrain) == ev.AskTrain(RoundNumber(1), Attempt(2), (A, B))


def test_a_site_that_failed_is_asked_again_only_with_the_next_version():
    machine, _ = started(Plan(sites=2, **QUIET), A, B)
    assert not machine.step(ev.SiteFailed(B, "no memory"))
    machine.step(ev.UpdateAdmitted(A))
    assert the(committed(machine), ev.AskTrain).sites == (A, B)


def test_draws_are_counted_anew_in_each_attempt():
    machine, _ = started(Plan(sites=3, sample=1, rounds=9, **QUIET), A, B, C)
    for _ in range(2):
        machine.step(ev.UpdateAdmitted(machine.training[0]))
        assert the(committed(machine), ev.AskTrain).draws == 1


def test_rounds_end_with_the_plan_or_by_early_stopping():
    machine, _ = started(Plan(sites=1, rounds=1, **QUIET), A)
    machine.step(ev.UpdateAdmitted(A))
    assert the(committed(machine), ev.Finish).outcome == "completed"
    assert machine.has_closed and not machine.is_asked(A)
    machine, _ = started(Plan(sites=1, early_stopping=EarlyStopping(patience=1)), A)
    for _ in range(2):
        machine.step(ev.UpdateAdmitted(A))
        machine.step(ev.Combined())
        machine.step(ev.SiteEvaluated(A, 1, {"loss": 1.0}))
        actions = machine.step(ev.Committed())
    assert the(actions, ev.Finish).outcome == "completed" and machine.round == 3


def test_the_mode_of_the_algorithm_chooses_the_machine():
    assert isinstance(machine_for(Plan(), "rounds"), RoundMachine)
    machine = machine_for(Plan(sites=3, quorum=2, **QUIET), "buffer")
    machine.start()
    for site in (A, B, C):
        machine.step(ev.SiteReady(site))
    machine.step(ev.UpdateAdmitted(A))
    assert has(machine.step(ev.UpdateAdmitted(B)), ev.Combine), "the buffer is the plan's quorum"


def test_a_sampler_of_whole_rounds_and_an_empty_buffer_are_refused():
    with pytest.raises(PlanError, match="draws whole rounds"):
        AsyncMachine(Plan(sampler="poisson:0.5"), buffer=1)
    with pytest.raises(ValueError, match="at least 1 update"):
        AsyncMachine(Plan(), buffer=0)


def test_the_diagram_names_every_transition():
    text = describe_async_states()
    assert text.startswith("stateDiagram-v2") and text.count("-->") == len(TRANSITIONS_ASYNC) + 2


@pytest.mark.parametrize("event", [ev.Combined(), ev.Committed(), ev.MissRecorded()])
def test_our_own_wrong_call_order_is_a_runtime_error(event):
    machine, _ = started(Plan(sites=1), A)
    with pytest.raises(RuntimeError):
        machine.step(event)


def test_a_quarantined_site_gets_no_task_until_it_is_released_and_then_at_once():
    policy = Quarantine(score="krum", threshold=2.0, rounds=1)
    machine, _ = started(Plan(sites=4, quarantine=policy, **QUIET), A, B, C, D, buffer=3)
    for site in (A, B, C):
        machine.step(ev.UpdateAdmitted(site))
    commit = the(machine.step(ev.Combined({A: {"krum": 1.0}, B: {"krum": 1.0}, C: {"krum": 9.0}})), ev.Commit)
    assert commit.suspicion.sites == {C}
    assert the(machine.step(ev.Committed()), ev.AskTrain).sites == (A, B)
    assert not has(machine.step(ev.SiteReady(C)), ev.AskTrain)
    actions = machine.step(ev.SiteReleased(C, 1))
    assert the(actions, ev.RecordRelease).site == C and the(actions, ev.AskTrain).sites == (C,)
