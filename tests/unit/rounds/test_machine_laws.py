"""Laws that any story of the round machine keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.plan import Plan
from federation.rounds import events as ev
from federation.rounds.machine import RoundMachine

from .stories import A, B, C, D

if TYPE_CHECKING:
    from federation.names import SiteName

SITES = st.sampled_from([A, B, C, D])
OUTSIDE = st.one_of(
    SITES.map(ev.SiteReady),
    st.builds(ev.SiteReady, SITES, st.tuples(st.integers(1, 3), st.integers(1, 2))),
    st.builds(ev.SiteFree, SITES, st.integers(1, 3), st.none() | st.integers(1, 2)),
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
@settings(max_examples=300)
def test_any_story_keeps_the_laws_of_a_round(plan, story):
    """A model is made of enough admitted updates, rounds count up one by one, and the end is the end.

    Whoever was asked to evaluate has a say, or it is said why not; and an evaluation that goes on waits for someone.
    """
    machine = RoundMachine(plan)
    pending = machine.start()
    admitted: set[SiteName] = set()
    committed = 0
    measuring: set[SiteName] = set()
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
            elif isinstance(action, ev.AskEvaluate):
                measuring.update(action.sites)
            elif isinstance(action, ev.Commit):
                committed += 1
                assert measuring == action.evaluations.keys() | action.unevaluated.keys()
                assert not action.evaluations.keys() & action.unevaluated.keys()
                measuring.clear()
                assert action.round == committed
                admitted.clear()
                pending += machine.step(ev.Committed())
            elif isinstance(action, ev.Finish):
                assert action.outcome == "failed" or committed == plan.rounds
        if machine.phase is ev.Phase.EVALUATE:
            assert any(machine.is_evaluating(site) and site not in machine._at_work for site in measuring)
