"""Laws that any story of the asynchronous machine keeps."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.plan import Plan
from federation.rounds import events as ev
from federation.rounds.asynchronous import TRANSITIONS_ASYNC, AsyncMachine
from federation.rounds.events import Phase, Progress

from .stories import A, B, C, D

SITES = st.sampled_from([A, B, C, D])
STORY = st.lists(
    st.one_of(
        st.builds(ev.SiteReady, SITES),
        st.builds(ev.SiteReady, SITES, st.tuples(st.integers(1, 3), st.integers(1, 2))),
        st.builds(ev.SiteFree, SITES, st.integers(1, 3), st.none() | st.integers(1, 2)),
        st.builds(ev.SiteLost, SITES),
        st.builds(ev.UpdateAdmitted, SITES),
        st.builds(ev.UpdateRefused, SITES, st.just("bad")),
        st.builds(ev.SiteFailed, SITES, st.just("broken"), st.booleans()),
        st.builds(ev.SiteEvaluated, SITES, st.just(5), st.just({"loss": 1.0})),
        st.builds(ev.TaskOverdue, SITES, st.integers(1, 3), st.integers(1, 2)),
        st.just(ev.DeadlinePassed()),
        st.just("shell"),
    ),
    max_size=80,
)


class Shell:
    """Watches the laws of every story: at most one task a site, at most `sample` at once, K updates a step.

    And whatever is refused or fails is in the line that is written next, and hears its verdict after it.
    """

    def __init__(self, plan, buffer):
        self.plan, self.buffer = plan, buffer
        self.machine = AsyncMachine(plan, buffer=buffer)
        self.owed = None
        self.set_aside, self.judged = {}, set()
        self.seen(self.machine.start())

    def seen(self, actions):
        for action in actions:
            if isinstance(action, ev.AskTrain):
                for site in action.sites:
                    assert site in self.machine.connected and site not in self.machine.waiting
            elif isinstance(action, ev.Combine):
                assert 1 <= len(action.sites) <= self.buffer and list(action.sites) == sorted(set(action.sites))
                assert set(action.asked) == set(action.sites)
                assert all(1 <= asked <= action.round for asked in action.asked.values())
                self.owed = ev.Combined()
            elif isinstance(action, ev.Commit):
                self.owed = ev.Committed()
                self.judge({site: action.standings[site].progress for site in self.set_aside})
            elif isinstance(action, ev.RecordMiss):
                self.owed = ev.MissRecorded()
                told = {site for site, end in self.set_aside.items() if f"{site} {end.value}" in action.reason}
                self.judge({site: self.set_aside[site] for site in told})
            elif isinstance(action, ev.SendVerdicts):
                assert self.judged <= set(action.reasons)
                self.judged = set()
        training = self.machine.training
        assert self.plan.sample is None or len(set(training) - set(self.machine.overdue)) <= self.plan.sample
        assert not set(training) & set(self.machine.waiting)
        assert len(set(self.machine.waiting)) == len(self.machine.waiting)

    def judge(self, ends):
        assert ends == self.set_aside
        self.judged = {site for site, end in ends.items() if end is Progress.REFUSED}
        self.set_aside = {}

    def tell(self, event):
        ends = {ev.UpdateRefused: Progress.REFUSED, ev.SiteFailed: Progress.FAILED}
        if type(event) in ends and self.machine.is_asked(event.site):
            self.set_aside[event.site] = ends[type(event)]
        if event == "shell":
            if self.owed is None:
                return
            event, self.owed = self.owed, None
        phase = self.machine.phase
        actions = self.machine.step(event)
        self.seen(actions)
        for action in actions:
            if isinstance(action, ev.EnterPhase):
                assert (phase, action.phase) in TRANSITIONS_ASYNC
                phase = action.phase
        if Phase.ENDED in (phase, self.machine.phase):
            assert phase is self.machine.phase


@settings(max_examples=200)
@given(story=STORY, sample=st.sampled_from([None, 1, 2]), buffer=st.integers(1, 3))
def test_any_story_keeps_the_laws(story, sample, buffer):
    shell = Shell(Plan(sites=3, sample=sample, rounds=5, max_failures=2), buffer)
    for site in (A, B, C):
        shell.tell(ev.SiteReady(site))
    for event in story:
        shell.tell(event)
        waits = shell.machine.phase is Phase.COLLECT
        assert not waits or shell.machine.training, "an open round has somebody to wait for"
