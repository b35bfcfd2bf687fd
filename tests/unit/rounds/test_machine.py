"""The round machine as a story of events; no clock, no files, no network."""

from __future__ import annotations

import pytest

from federation.names import Attempt, RoundNumber
from federation.plan import EarlyStopping, Plan
from federation.rounds import events as ev
from federation.rounds.machine import TRANSITIONS, RoundMachine, describe_states

from .stories import A, B, C, D, E, has, run_round, started, the


def test_the_first_round_starts_when_the_sites_wanted_have_joined():
    machine, actions = started(Plan(sites=2), A)
    assert machine.phase is ev.Phase.JOINING and not actions
    actions = machine.step(ev.SiteReady(B))
    assert the(actions, ev.AskTrain) == ev.AskTrain(RoundNumber(1), Attempt(1), (A, B))
    assert the(actions, ev.StartTimer).seconds == 3600


def test_an_attempt_that_has_not_opened_yet_has_not_closed_either():
    resume = ev.Resume(round=RoundNumber(3), expected=(A, B))
    machine, _ = started(Plan(sites=2), A, resume=resume)
    assert (machine.phase, machine.has_closed, machine.is_asked(A)) == (ev.Phase.JOINING, False, False)
    machine.step(ev.SiteReady(B))
    assert not machine.has_closed and machine.is_asked(A)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.UpdateAdmitted(B))
    assert (machine.phase, machine.has_closed) == (ev.Phase.AGGREGATE, True)


def test_the_join_timeout_starts_a_round_with_enough_sites_and_marks_it_degraded():
    machine, _ = started(Plan(sites=3, minimum_sites=2, rounds=1), A, B)
    actions = machine.step(ev.DeadlinePassed())
    assert the(actions, ev.AskTrain).sites == (A, B)
    finish = the(run_round(machine, A, B), ev.Finish)
    assert finish.outcome == "completed" and finish.is_degraded


def test_a_whole_round_goes_through_every_phase_in_order():
    machine, actions = started(Plan(sites=2, rounds=2), A, B)
    seen = [action.phase for action in actions if isinstance(action, ev.EnterPhase)]
    for event in (
        ev.ModelHeld(A), ev.ModelHeld(B), ev.UpdateAdmitted(A), ev.UpdateAdmitted(B), ev.Combined(),
        ev.SiteEvaluated(A, 1, {"loss": 1.0}), ev.SiteEvaluated(B, 3, {"loss": 2.0}),
    ):  # fmt: skip
        actions = machine.step(event)
        seen += [action.phase for action in actions if isinstance(action, ev.EnterPhase)]
    assert [phase.value for phase in seen] == ["select", "broadcast", "collect", "aggregate", "evaluate", "commit"]
    commit = the(actions, ev.Commit)
    assert commit.metrics == {"loss": 1.75} and commit.is_best
    actions = machine.step(ev.Committed())
    assert the(actions, ev.SendVerdicts).reasons == {A: "", B: ""}
    assert the(actions, ev.AskTrain).round == 2


def test_with_a_quorum_the_deadline_closes_the_round_without_stragglers():
    machine, _ = started(Plan(sites=3, quorum=2, rounds=1), A, B, C)
    machine.step(ev.UpdateAdmitted(A))
    assert not has(machine.step(ev.UpdateAdmitted(C)), ev.Combine), "the quorum alone does not close a round"
    actions = machine.step(ev.DeadlinePassed())
    assert the(actions, ev.Combine).sites == (A, C)
    assert not machine.step(ev.UpdateAdmitted(B)), "what arrives after closing is late"
    actions = machine.step(ev.Combined())
    for site in (A, B, C):
        actions = machine.step(ev.SiteEvaluated(site, 1, {"loss": 1.0}))
    assert the(actions, ev.Commit).standings[B].progress is ev.Progress.LATE
    actions = machine.step(ev.Committed())
    assert the(actions, ev.SendVerdicts).reasons == {A: "", B: "late", C: ""}
    assert the(actions, ev.Finish).is_degraded


def test_without_a_quorum_the_deadline_is_a_miss_and_everybody_is_asked_anew():
    machine, _ = started(Plan(sites=2), A, B)
    machine.step(ev.UpdateAdmitted(A))
    miss = the(machine.step(ev.DeadlinePassed()), ev.RecordMiss)
    assert "1 updates of the 2 needed" in miss.reason and "site-b late" in miss.reason
    assert not machine.step(ev.UpdateAdmitted(B)), "too late, though the miss is not written down yet"
    actions = machine.step(ev.MissRecorded())
    assert the(actions, ev.SendVerdicts) == ev.SendVerdicts(RoundNumber(1), Attempt(1), {A: "quorum lost", B: "late"})
    assert the(actions, ev.AskTrain) == ev.AskTrain(RoundNumber(1), Attempt(2), (A, B))
    machine.step(ev.UpdateAdmitted(B))
    assert the(machine.step(ev.UpdateAdmitted(A)), ev.Combine).sites == (A, B)


def test_a_round_goes_on_while_quorum_holds_when_a_site_fails():
    machine, _ = started(Plan(sites=3, quorum=2), A, B, C)
    machine.step(ev.SiteFailed(B, "ValueError"))
    machine.step(ev.UpdateAdmitted(A))
    assert the(machine.step(ev.UpdateAdmitted(C)), ev.Combine).sites == (A, C)


def test_a_refused_site_is_done_and_left_out_of_the_retry():
    machine, _ = started(Plan(sites=3, minimum_sites=2), A, B, C)
    machine.step(ev.UpdateRefused(A, "not_finite"))
    machine.step(ev.UpdateAdmitted(B))
    actions = machine.step(ev.UpdateAdmitted(C))
    assert "site-a refused (not_finite)" in the(actions, ev.RecordMiss).reason
    assert the(machine.step(ev.MissRecorded()), ev.AskTrain).sites == (B, C)


def test_a_refused_site_is_asked_again_when_a_round_needs_it():
    machine, _ = started(Plan(minimum_sites=2), A, B)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.UpdateRefused(B, "norm"))
    assert the(machine.step(ev.MissRecorded()), ev.AskTrain).sites == (A, B)


def test_misses_in_a_row_are_forgiven_up_to_the_limit_and_then_fail_the_experiment():
    machine, _ = started(Plan(sites=1, max_failures=2), A)
    for _ in range(2):
        machine.step(ev.SiteFailed(A, "ValueError"))
        assert has(machine.step(ev.MissRecorded()), ev.AskTrain)
    machine.step(ev.SiteFailed(A, "ValueError"))
    finish = the(machine.step(ev.MissRecorded()), ev.Finish)
    assert finish.outcome == "failed" and "3 times in a row" in finish.reason and "ValueError" in finish.reason


def test_a_committed_round_forgets_earlier_misses():
    machine, _ = started(Plan(sites=1, max_failures=1), A)
    for _ in range(3):
        machine.step(ev.SiteFailed(A, "ValueError"))
        assert the(machine.step(ev.MissRecorded()), ev.AskTrain).attempt == 2
        assert the(run_round(machine, A), ev.AskTrain).attempt == 1


def test_a_round_nobody_could_evaluate_is_committed_without_metrics():
    machine, _ = started(Plan(sites=1), A)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.Combined())
    commit = the(machine.step(ev.SiteLost(A)), ev.Commit)
    assert commit.metrics == {} and not commit.is_best


def test_rounds_are_evaluated_at_the_plans_cadence_and_at_the_end():
    machine, _ = started(Plan(sites=1, rounds=3, evaluate_every=2), A)
    evaluated = []
    for number in (1, 2, 3):
        machine.step(ev.UpdateAdmitted(A))
        actions = machine.step(ev.Combined())
        if has(actions, ev.AskEvaluate):
            evaluated.append(number)
            machine.step(ev.SiteEvaluated(A, 1, {"loss": 1.0}))
        machine.step(ev.Committed())
    assert evaluated == [2, 3]


def test_early_stopping_completes_the_experiment_after_its_patience():
    machine, _ = started(Plan(sites=1, rounds=9, early_stopping=EarlyStopping(patience=2, min_delta=0.1)), A)
    run_round(machine, A, loss=1.0)
    run_round(machine, A, loss=0.95)
    finish = the(run_round(machine, A, loss=0.94), ev.Finish)
    assert finish.outcome == "completed" and "stopped early" in finish.reason
    assert machine.score.best == pytest.approx(0.94) and machine.score.best_round == 3, (
        "the best model does not need min_delta"
    )
    assert not finish.is_degraded


def test_sampling_asks_so_many_and_a_retry_draws_anew():
    machine, actions = started(Plan(sites=4, sample=2, max_failures=20), A, B, C, D)
    drawn = set()
    for _ in range(20):
        sites = the(actions, ev.AskTrain).sites
        assert len(sites) == 2
        drawn.add(sites)
        machine.step(ev.DeadlinePassed())
        actions = machine.step(ev.MissRecorded())
    assert len(drawn) > 1


def test_the_diagram_names_every_transition():
    text = describe_states()
    assert text.startswith("stateDiagram-v2") and text.count("-->") == len(TRANSITIONS) + 2


@pytest.mark.parametrize("event", [ev.MissRecorded(), ev.Combined(), ev.Committed()])
def test_our_own_wrong_call_order_is_a_runtime_error(event):
    machine, _ = started(Plan(sites=2), A)
    with pytest.raises(RuntimeError):
        machine.step(event)


def test_a_round_without_the_site_its_rule_trusts_is_tried_again():
    machine = RoundMachine(Plan(sites=3, quorum=2, max_failures=1), trusted=A)
    machine.start()
    for site in (A, B, C):
        machine.step(ev.SiteReady(site))
    machine.step(ev.UpdateAdmitted(B))
    machine.step(ev.UpdateAdmitted(C))
    miss = the(machine.step(ev.SiteLost(A, "gone")), ev.RecordMiss)
    assert miss.reason == (
        "2 updates of the 2 needed: site-a lost (gone); the rule trusts site-a, whose update is not among them"
    )
    actions = machine.step(ev.MissRecorded())
    assert the(actions, ev.AskTrain).sites == (B, C)
    actions = machine.step(ev.SiteReady(A))
    machine.step(ev.UpdateAdmitted(B))
    actions = machine.step(ev.UpdateAdmitted(C))
    assert the(actions, ev.RecordMiss).reason.startswith("2 updates of the 2 needed: none is missing; the rule trusts")
    finish = the(machine.step(ev.MissRecorded()), ev.Finish)
    assert finish.outcome == "failed" and "the rule trusts site-a" in finish.reason


def test_a_round_with_the_site_its_rule_trusts_is_aggregated():
    machine = RoundMachine(Plan(sites=3, quorum=2), trusted=A)
    machine.start()
    for site in (A, B, C):
        machine.step(ev.SiteReady(site))
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.UpdateAdmitted(C))
    assert the(machine.step(ev.SiteLost(B, "gone")), ev.Combine).sites == (A, C)


# --- quarantine


@pytest.mark.parametrize("seed", range(3))
def test_who_is_foreseen_is_asked_next_and_foreseeing_changes_no_draw(seed):
    plan = Plan(sites=5, sample=2, rounds=3, seed=seed)
    (plain, asked), (foreseeing, same) = started(plan, A, B, C, D, E), started(plan, A, B, C, D, E)
    for _ in range(2):
        sites = the(asked, ev.AskTrain).sites
        assert the(same, ev.AskTrain).sites == sites
        foreseen = foreseeing.foresee()
        asked, same = run_round(plain, *sites), run_round(foreseeing, *sites)
        assert the(same, ev.AskTrain).sites == foreseen


def test_a_site_that_is_lost_after_the_next_draw_was_foreseen_is_not_asked():
    machine, _ = started(Plan(sites=3, quorum=2, rounds=2, evaluate_every=0), A, B, C)
    assert machine.foresee() == (A, B, C)
    for event in (ev.UpdateAdmitted(A), ev.UpdateAdmitted(B), ev.SiteLost(C, "gone"), ev.Combined()):
        machine.step(event)
    assert the(machine.step(ev.Committed()), ev.AskTrain).sites == (A, B)


def test_draws_that_look_at_more_than_who_is_there_are_not_foreseen():
    assert started(Plan(sites=2, sampler="available"), A, B)[0].foresee() == ()
