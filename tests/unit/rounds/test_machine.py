"""The round machine as a story of events; no clock, no files, no network."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.names import Attempt, RoundNumber, SiteName
from federation.plan import EarlyStopping, Plan, Quarantine
from federation.rounds import events as ev
from federation.rounds.machine import REJOIN_S, TRANSITIONS, RoundMachine, describe_states

A, B, C, D, E = (SiteName(f"site-{letter}") for letter in "abcde")


def the(actions, kind):
    """The one action of a kind."""
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]


def has(actions, kind):
    return any(isinstance(action, kind) for action in actions)


def started(plan, *sites, resume=None):
    """A machine that has been started and whose sites are ready, and the last actions."""
    machine = RoundMachine(plan, resume)
    actions = machine.start()
    for site in sites:
        actions = machine.step(ev.SiteReady(site))
    return machine, actions


def run_round(machine, *sites, loss=0.5):
    """Bring the open round to its end with every site answering; return the last actions."""
    for site in sites:
        actions = machine.step(ev.UpdateAdmitted(site))
    assert the(actions, ev.Combine).sites == sites
    actions = machine.step(ev.Combined())
    for site in the(actions, ev.AskEvaluate).sites:
        actions = machine.step(ev.SiteEvaluated(site, 10, {"loss": loss}))
    assert has(actions, ev.Commit)
    return machine.step(ev.Committed())


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


def test_too_few_at_the_join_timeout_fails_with_both_numbers():
    machine, _ = started(Plan(sites=3, minimum_sites=2), A)
    finish = the(machine.step(ev.DeadlinePassed()), ev.Finish)
    assert finish.outcome == "failed" and "1 sites joined" in finish.reason and "needs 2" in finish.reason


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


def test_a_site_lost_without_quorum_leaves_the_round_to_the_remaining_sites():
    machine, _ = started(Plan(sites=3, minimum_sites=2), A, B, C)
    machine.step(ev.UpdateAdmitted(A))
    machine.step(ev.SiteLost(B))
    assert has(machine.step(ev.UpdateAdmitted(C)), ev.RecordMiss)
    assert the(machine.step(ev.MissRecorded()), ev.AskTrain).sites == (A, C)
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


def test_too_few_sites_pause_the_experiment_until_they_are_back():
    machine, _ = started(Plan(minimum_sites=2), A, B)
    machine.step(ev.SiteFailed(A, "OSError", permanent=True))
    machine.step(ev.SiteLost(B))
    actions = machine.step(ev.MissRecorded())
    assert machine.phase is ev.Phase.PAUSED
    assert the(actions, ev.StartTimer).seconds == 3600
    assert not machine.step(ev.SiteReady(A))
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
    assert not machine.step(ev.SiteReady(B))
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


def test_the_diagram_names_every_transition():
    text = describe_states()
    assert text.startswith("stateDiagram-v2") and text.count("-->") == len(TRANSITIONS) + 2


@pytest.mark.parametrize("event", [ev.MissRecorded(), ev.Combined(), ev.Committed()])
def test_our_own_wrong_call_order_is_a_runtime_error(event):
    machine, _ = started(Plan(sites=2), A)
    with pytest.raises(RuntimeError):
        machine.step(event)


SITES = st.sampled_from([A, B, C, D])
OUTSIDE = st.one_of(
    SITES.map(ev.SiteReady),
    SITES.map(ev.SiteLost),
    SITES.map(ev.ModelHeld),
    SITES.map(ev.UpdateAdmitted),
    SITES.map(lambda site: ev.UpdateRefused(site, "norm")),
    st.builds(ev.SiteFailed, SITES, st.just("ValueError"), st.booleans()),
    st.builds(ev.SiteEvaluated, SITES, st.integers(0, 9), st.just({"loss": 1.0})),
    st.just(ev.DeadlinePassed()),
)
PLANS = st.builds(
    lambda wanted, minimum, quorum, sample, cadence: Plan(
        sites=wanted, minimum_sites=min(minimum, wanted), sample=min(sample, wanted) if sample else None,
        quorum=min(quorum, sample or wanted, wanted) if quorum else None, evaluate_every=cadence, rounds=3,
        max_failures=2,
    ),
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 2),
)  # fmt: skip


@given(PLANS, st.lists(OUTSIDE, max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_story_keeps_the_laws_of_a_round(plan, story):
    """A model is made of enough admitted updates, rounds count up one by one, and the end is the end."""
    machine = RoundMachine(plan)
    pending = machine.start()
    admitted: set[SiteName] = set()
    committed = 0
    for event in story:
        if isinstance(event, ev.UpdateAdmitted) and machine.is_asked(event.site):
            admitted.add(event.site)
        was_over = machine.phase is ev.Phase.ENDED
        pending = machine.step(event)
        assert not (was_over and pending)
        while pending:
            action = pending.pop(0)
            if isinstance(action, ev.Combine):
                assert action.sites and set(action.sites) <= admitted
                assert len(action.sites) >= (plan.quorum or len(machine.asked))
                assert list(action.sites) == sorted(action.sites)
                pending += machine.step(ev.Combined())
            elif isinstance(action, ev.AskTrain):
                assert not set(action.sites) & admitted, "an admitted update is never asked for again"
                assert action.attempt <= plan.max_failures + 1
                assert set(action.sites) <= machine.connected
            elif isinstance(action, ev.RecordMiss):
                admitted.clear()
                pending += machine.step(ev.MissRecorded())
            elif isinstance(action, ev.Commit):
                committed += 1
                assert action.round == committed
                admitted.clear()
                pending += machine.step(ev.Committed())
            elif isinstance(action, ev.Finish):
                assert action.outcome == "failed" or committed == plan.rounds


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


POLICY = Quarantine(score="krum", threshold=2.0, rounds=2)


def suspect(machine, *sites, hostile=C, evaluates=True):
    """Run the open round, in which one site's Krum score stands out; return the actions of its end."""
    for site in sites:
        machine.step(ev.UpdateAdmitted(site))
    scores = {site: {"krum": 9.0 if site == hostile else 1.0} for site in sites}
    actions = machine.step(ev.Combined(scores))
    asked = the(actions, ev.AskEvaluate).sites
    assert asked == tuple(sorted(machine.available))
    for site in asked:
        actions = machine.step(ev.SiteEvaluated(site, 10, {"loss": 0.5}))
    commit = the(actions, ev.Commit)
    return commit, machine.step(ev.Committed())


def quarantined(**plan):
    """A machine of three sites whose third was just quarantined, and the last actions."""
    machine, _ = started(Plan(sites=3, rounds=9, quarantine=POLICY, **plan), A, B, C)
    suspect(machine, A, B, C)
    _, actions = suspect(machine, A, B, C)
    return machine, actions


def test_a_quarantined_site_stays_connected_and_is_asked_neither_to_train_nor_to_evaluate():
    machine, actions = quarantined()
    assert C in machine.connected and the(actions, ev.AskTrain).sites == (A, B)
    commit, actions = suspect(machine, A, B)
    assert set(commit.standings) == {A, B} and the(actions, ev.AskTrain).sites == (A, B)
    assert commit.suspicion.sites == {C} and commit.score.is_degraded


def test_a_released_site_is_asked_from_the_next_round_on_and_a_release_is_obeyed_once():
    machine, _ = quarantined()
    actions = machine.step(ev.SiteReleased(C, 1))
    assert the(actions, ev.RecordRelease) == ev.RecordRelease(C, 1)
    assert machine.step(ev.SiteReleased(C, 1)) == []
    _, actions = suspect(machine, A, B)
    assert the(actions, ev.AskTrain).sites == (A, B, C)
    commit, _ = suspect(machine, A, B, C)
    assert not commit.suspicion.held, "its strikes were cleared"


def test_too_few_sites_outside_quarantine_pause_the_experiment_and_the_reason_says_so():
    machine, actions = quarantined(minimum_sites=3)
    pause = the(actions, ev.EnterPhase) if machine.phase is ev.Phase.SELECT else actions[-2]
    assert machine.phase is ev.Phase.PAUSED
    assert pause.reason == (
        "2 sites are connected and site-c in quarantine (`federation release` lets one out), a round needs 3"
    )
    finish = the(machine.step(ev.DeadlinePassed()), ev.Finish)
    assert finish.outcome == "failed" and "site-c in quarantine" in finish.reason


def test_a_release_ends_the_pause():
    machine, _ = quarantined(minimum_sites=3)
    assert not has(machine.step(ev.SiteReady(C)), ev.AskTrain), "a new session releases nobody"
    assert the(machine.step(ev.SiteReleased(C, 1)), ev.AskTrain).sites == (A, B, C)


def test_a_restarted_machine_keeps_a_site_in_quarantine_and_does_not_wait_for_it():
    held = quarantined()[0].suspicion
    resume = ev.Resume(round=RoundNumber(3), expected=(A, B, C), suspicion=held)
    _, actions = started(Plan(sites=3, quarantine=POLICY), C, A, B, resume=resume)
    assert the(actions, ev.AskTrain).sites == (A, B)


def test_a_release_before_the_sites_are_back_counts():
    resume = ev.Resume(round=RoundNumber(3), expected=(A, B, C), suspicion=quarantined()[0].suspicion)
    machine, _ = started(Plan(sites=3, quarantine=POLICY), resume=resume)
    machine.step(ev.SiteReleased(C, 1))
    for site in (A, B):
        assert machine.phase is ev.Phase.JOINING
        actions = machine.step(ev.SiteReady(site))
    actions = machine.step(ev.SiteReady(C))
    assert the(actions, ev.AskTrain).sites == (A, B, C)


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
