"""The round machine with sites in quarantine."""

from __future__ import annotations

from federation.names import Attempt, RoundNumber
from federation.plan import Plan, Quarantine
from federation.rounds import events as ev

from .stories import A, B, C, has, started, the

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
    assert the(actions, ev.RecordRelease) == ev.RecordRelease(C, 1, (RoundNumber(3), Attempt(1)))
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
