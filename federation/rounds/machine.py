"""The round machine: what happens next, decided from events alone.

Events go into `RoundMachine.step`, actions come out; nothing here waits, reads a clock or touches a file. Rules:

1. **Joining.** The first round starts when `plan.sites_wanted` sites are ready. When `join_timeout_s` runs out it
   starts with fewer, if there are enough for a round (rule 2); otherwise the experiment fails. A restarted aggregator
   waits for the sites of the last committed round instead, `REJOIN_S` at most, then for enough.
2. **Select.** A round needs `plan.sites_needed` sites that are connected or, after a restart, have an admitted update
   in the spool. With fewer the experiment is paused until enough are back, or fails after `join_timeout_s`. Of the
   connected ones `sample` are drawn by seed, round and attempt.
3. **Broadcast and collect.** Every drawn site is asked to train. The attempt closes when every asked site is done
   (update admitted or refused, failure, loss), or at the deadline. A lost site that comes back while the attempt is
   open is asked again. What arrives after closing is late.
4. **Quorum.** A closed attempt is aggregated if `quorum` updates are admitted; with quorum None, if all that were
   asked are. Otherwise it is a miss: the miss is written down, the updates of the attempt are dropped and their sites
   told so, and the round is tried again by a new draw; refused sites are left out while enough others remain.
   `max_failures` misses in a row are forgiven; one more fails the experiment.
5. **Evaluate.** The candidate of every evaluated round goes to all connected sites. The phase ends when each has
   answered, failed or is lost, or at the deadline; the metrics are the mean of those that answered. No answer at all
   leaves the round without metrics, and it is committed all the same.
6. **Commit.** Best model and early stopping follow the plan's measure. A round with fewer counted updates than sites
   asked, or than planned (`sample`, else `sites_wanted`), makes the experiment degraded.

A site whose failure is permanent, or that the roster no longer has, is not asked again until it says it is ready.
`TRANSITIONS` is the only list of what may follow what; `describe_states` draws it for the documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation.names import Attempt, RoundNumber, SiteName
from federation.rounds import events, sampling, scoring
from federation.rounds.events import Action, Event, Phase, Progress, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.plan import Plan

REJOIN_S = 30.0
"""Seconds a restarted aggregator waits for the sites it had: they redial within a few."""

TRANSITIONS: Mapping[tuple[Phase, Phase], str] = {
    (Phase.JOINING, Phase.SELECT): "enough sites joined",
    (Phase.JOINING, Phase.ENDED): "too few joined in time",
    (Phase.SELECT, Phase.BROADCAST): "sites drawn",
    (Phase.SELECT, Phase.PAUSED): "too few sites connected",
    (Phase.PAUSED, Phase.SELECT): "sites came back",
    (Phase.PAUSED, Phase.ENDED): "sites did not come back in time",
    (Phase.BROADCAST, Phase.COLLECT): "every asked site holds the model or is done",
    (Phase.COLLECT, Phase.AGGREGATE): "quorum reached",
    (Phase.COLLECT, Phase.MISSED): "quorum missed",
    (Phase.MISSED, Phase.SELECT): "the round is tried again",
    (Phase.MISSED, Phase.ENDED): "quorum missed too often",
    (Phase.AGGREGATE, Phase.EVALUATE): "the plan evaluates this round",
    (Phase.AGGREGATE, Phase.COMMIT): "the plan does not evaluate this round",
    (Phase.EVALUATE, Phase.COMMIT): "every site answered, or the deadline passed",
    (Phase.COMMIT, Phase.SELECT): "next round",
    (Phase.COMMIT, Phase.ENDED): "last round, or early stopping",
}

_NOT_YET_OPEN = (Phase.JOINING, Phase.SELECT, Phase.PAUSED)
_OPEN = (Phase.BROADCAST, Phase.COLLECT)


def describe_states() -> str:
    """Return the state diagram as Mermaid text, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.JOINING.value}"]
    lines += [f"    {source.value} --> {target.value}: {why}" for (source, target), why in TRANSITIONS.items()]
    return "\n".join([*lines, f"    {Phase.ENDED.value} --> [*]"]) + "\n"


class RoundMachine:
    """State of one experiment's rounds.

    Args:
        plan: what the experiment does.
        resume: where to go on; by default before the first round.
    """

    def __init__(self, plan: Plan, resume: events.Resume | None = None) -> None:
        resume = resume or events.Resume()
        self.phase = Phase.JOINING
        self.round = resume.round
        self.attempt = resume.attempt
        self.score = resume.score
        self.connected: set[SiteName] = set()
        self.standings: dict[SiteName, Standing] = {
            site: Standing(progress=Progress.ADMITTED) for site in resume.admitted
        }
        self._plan = plan
        self._expected = frozenset(resume.expected)
        self._has_waited = False
        self._asked: tuple[SiteName, ...] = ()
        self._holding: set[SiteName] = set()
        self._miss = ""
        self._evaluating: set[SiteName] = set()
        self._evaluations: dict[SiteName, events.SiteEvaluated] = {}
        self._actions: list[Action] = []

    @property
    def asked(self) -> tuple[SiteName, ...]:
        """Sites of the present attempt, in name order: those drawn, and those whose updates were in at a restart."""
        return self._asked

    @property
    def done(self) -> int:
        """How many of the asked sites have answered, or will not."""
        return sum(1 for site in self._asked if self.standings[site].progress is not Progress.ASKED)

    @property
    def has_closed(self) -> bool:
        """Whether the present attempt takes no more updates; False while it has not opened yet."""
        return self.phase not in _OPEN and self.phase not in _NOT_YET_OPEN

    def is_asked(self, site: SiteName) -> bool:
        """Whether an update of this site for this round would be taken now."""
        return self.phase in _OPEN and self._is(site, Progress.ASKED)

    def is_admitted(self, site: SiteName) -> bool:
        """Whether this site's update for this round is in."""
        return self._is(site, Progress.ADMITTED)

    def is_evaluating(self, site: SiteName) -> bool:
        """Whether metrics of the candidate are awaited from this site."""
        return self.phase is Phase.EVALUATE and site in self._evaluating

    def start(self) -> list[Action]:
        """Return the first actions. To be called once, before any event."""
        self._actions = [events.EnterPhase(Phase.JOINING, self.round)]
        if self.round > self._plan.rounds or scoring.stop_reason(self._plan, self.score):
            # The process died between its last commit and the end: nothing is left to do but to say so.
            self.phase = Phase.COMMIT
            self._end_or_go_on()
        else:
            timeout = min(REJOIN_S, self._plan.join_timeout_s) if self._expected else self._plan.join_timeout_s
            self._do(events.StartTimer(timeout))
        return self._take()

    def step(self, event: Event) -> list[Action]:
        """Take in one event and return what to do, in order. Events that mean nothing now are ignored."""
        handler: Callable[[RoundMachine, Any], None] = _HANDLERS[type(event)]
        handler(self, event)
        return self._take()

    # --- events about sites

    def _on_ready(self, event: events.SiteReady) -> None:
        site = event.site
        self.connected.add(site)
        if self.phase is Phase.JOINING:
            self._maybe_begin()
        elif self.phase is Phase.PAUSED:
            if len(self._participants()) >= self._plan.sites_needed:
                self._select()
        elif self.phase in _OPEN and self._is(site, Progress.ASKED, Progress.LOST) and site in self._asked:
            self.standings[site] = Standing(progress=Progress.ASKED)
            self._holding.discard(site)
            self._do(events.AskTrain(self.round, self.attempt, (site,)))
        elif self.is_evaluating(site):
            self._do(events.AskEvaluate(self.round, (site,)))

    def _on_lost(self, event: events.SiteLost) -> None:
        self.connected.discard(event.site)
        self._set_aside(event.site, Progress.LOST, event.reason)

    def _on_failed(self, event: events.SiteFailed) -> None:
        if event.permanent:
            self.connected.discard(event.site)
        self._set_aside(event.site, Progress.FAILED, event.reason)

    def _on_refused(self, event: events.UpdateRefused) -> None:
        if self.is_asked(event.site):
            self._set_aside(event.site, Progress.REFUSED, event.reason)

    def _set_aside(self, site: SiteName, progress: Progress, reason: str) -> None:
        if self.is_asked(site):
            self.standings[site] = Standing(progress=progress, reason=reason)
            self._look_at_collection()
        elif self.is_evaluating(site):
            self._evaluating.discard(site)
            self._look_at_evaluation()

    # --- joining and pausing

    def _participants(self) -> set[SiteName]:
        admitted = {site for site, standing in self.standings.items() if standing.progress is Progress.ADMITTED}
        return self.connected | admitted

    def _maybe_begin(self) -> None:
        # A site whose update is in the spool is waited for all the same: it should evaluate, and take part from now on.
        here = len(self.connected)
        if self._has_waited:
            enough = len(self._participants()) >= self._plan.sites_needed
        elif self._expected:
            enough = self.connected >= self._expected and here >= self._plan.sites_needed
        else:
            enough = here >= max(self._plan.sites_wanted, self._plan.sites_needed)
        if enough:
            self._select()

    def _on_deadline(self, _: events.DeadlinePassed) -> None:
        if self.phase is Phase.JOINING:
            self._on_join_timeout()
        elif self.phase is Phase.PAUSED:
            present = len(self._participants())
            self._finish(
                "failed", f"{present} sites are connected, {self._plan.sites_needed} are needed, and no more came back"
            )
        elif self.phase in _OPEN:
            for site in self._asked:
                if self._is(site, Progress.ASKED):
                    self.standings[site] = Standing(progress=Progress.LATE, reason="late")
            self._look_at_collection()
        elif self.phase is Phase.EVALUATE:
            self._evaluating.clear()
            self._look_at_evaluation()

    def _on_join_timeout(self) -> None:
        present = len(self._participants())
        if present >= self._plan.sites_needed:
            self._select()
        elif self._expected and not self._has_waited:
            self._has_waited = True
            self._do(events.StartTimer(self._plan.join_timeout_s))
        else:
            self._finish("failed", f"{present} sites joined in time, but a round needs {self._plan.sites_needed}")

    # --- one attempt

    def _select(self) -> None:
        self._enter(Phase.SELECT)
        if len(self._participants()) < self._plan.sites_needed:
            reason = f"{len(self._participants())} sites are connected, a round needs {self._plan.sites_needed}"
            self._enter(Phase.PAUSED, reason)
            self._do(events.StartTimer(self._plan.join_timeout_s))
            return
        kept = {site for site in self.standings if self._is(site, Progress.ADMITTED)}
        candidates = self.connected - kept
        trusted = {site for site in candidates if not self._is(site, Progress.REFUSED)}
        if len(trusted | kept) >= self._plan.sites_needed:
            candidates = trusted
        sample = None if self._plan.sample is None else max(self._plan.sample - len(kept), 0)
        drawn = sampling.draw_sites(
            candidates, sample=sample, seed=self._plan.seed, round_number=self.round, attempt=self.attempt
        )
        self._asked = tuple(sorted(kept.union(drawn)))
        self._holding.clear()
        for site in drawn:
            self.standings[site] = Standing(progress=Progress.ASKED)
        self._enter(Phase.BROADCAST)
        self._do(events.StartTimer(self._plan.deadline_s))
        if drawn:
            self._do(events.AskTrain(self.round, self.attempt, drawn))
        self._look_at_collection()

    def _on_held(self, event: events.ModelHeld) -> None:
        if self.is_asked(event.site):
            self._holding.add(event.site)
            self._look_at_collection()

    def _on_admitted(self, event: events.UpdateAdmitted) -> None:
        if self.is_asked(event.site):
            self.standings[event.site] = Standing(progress=Progress.ADMITTED)
            self._look_at_collection()

    def _look_at_collection(self) -> None:
        waiting = {site for site in self._asked if self._is(site, Progress.ASKED)}
        if self.phase is Phase.BROADCAST and waiting <= self._holding:
            self._enter(Phase.COLLECT)
        if not waiting:
            self._close()

    def _close(self) -> None:
        counted = tuple(site for site in self._asked if self._is(site, Progress.ADMITTED))
        required = self._plan.quorum or len(self._asked)
        if len(counted) >= required:
            self._enter(Phase.AGGREGATE)
            self._do(events.StopTimer())
            self._do(events.Combine(self.round, counted))
            return
        self._miss = self._explain_miss(len(counted), required)
        self._enter(Phase.MISSED, self._miss)
        self._do(events.StopTimer())
        self._do(events.RecordMiss(self.round, self.attempt, self._miss))

    def _on_miss_recorded(self, _: events.MissRecorded) -> None:
        if self.phase is not Phase.MISSED:
            raise RuntimeError(f"a miss was recorded in phase {self.phase.value}")
        self._send_verdicts(admitted="quorum lost")
        for site in self.standings:
            if self._is(site, Progress.ADMITTED):
                self.standings[site] = Standing(progress=Progress.LOST, reason="quorum lost")
        if self.attempt > self._plan.max_failures:
            self._finish("failed", f"round {self.round} missed its quorum {self.attempt} times in a row; {self._miss}")
            return
        self.attempt = Attempt(self.attempt + 1)
        self._select()

    def _send_verdicts(self, *, admitted: str) -> None:
        sent = (Progress.ADMITTED, Progress.REFUSED, Progress.LATE)
        reasons = {
            site: admitted if standing.progress is Progress.ADMITTED else standing.reason
            for site, standing in sorted(self.standings.items())
            if site in self._asked and standing.progress in sent
        }
        self._do(events.SendVerdicts(self.round, self.attempt, reasons))

    def _explain_miss(self, counted: int, required: int) -> str:
        missing = [
            f"{site} {standing.progress.value}" + (f" ({standing.reason})" if standing.reason else "")
            for site, standing in sorted(self.standings.items())
            if site in self._asked and standing.progress is not Progress.ADMITTED
        ]
        return f"{counted} updates of the {required} needed: {', '.join(missing)}"

    # --- the candidate model

    def _on_combined(self, _: events.Combined) -> None:
        if self.phase is not Phase.AGGREGATE:
            raise RuntimeError(f"a model was combined in phase {self.phase.value}")
        self._evaluations = {}
        self._evaluating = set(self.connected) if self._plan.is_evaluated(self.round) else set()
        if not self._evaluating:
            self._commit()
            return
        self._enter(Phase.EVALUATE)
        self._do(events.StartTimer(self._plan.deadline_s))
        self._do(events.AskEvaluate(self.round, tuple(sorted(self._evaluating))))

    def _on_evaluated(self, event: events.SiteEvaluated) -> None:
        if self.is_evaluating(event.site):
            self._evaluating.discard(event.site)
            self._evaluations[event.site] = event
            self._look_at_evaluation()

    def _look_at_evaluation(self) -> None:
        if not self._evaluating:
            self._do(events.StopTimer())
            self._commit()

    def _commit(self) -> None:
        self._enter(Phase.COMMIT)
        metrics = scoring.federated_metrics(self._evaluations)
        counted = sum(1 for site in self.standings if self._is(site, Progress.ADMITTED))
        planned = max(self._plan.sample or self._plan.sites_wanted, len(self._asked))
        self.score, is_best = scoring.judge(self._plan, self.score, self.round, metrics, is_degraded=counted < planned)
        self._do(
            events.Commit(
                round=self.round,
                attempt=self.attempt,
                standings=dict(sorted(self.standings.items())),
                metrics=metrics,
                evaluations=dict(sorted(self._evaluations.items())),
                is_best=is_best,
                score=self.score,
            )
        )

    def _on_committed(self, _: events.Committed) -> None:
        if self.phase is not Phase.COMMIT:
            raise RuntimeError(f"a round was committed in phase {self.phase.value}")
        self._send_verdicts(admitted="")
        self.round = RoundNumber(self.round + 1)
        self.attempt = Attempt(1)
        self.standings = {}
        self._asked = ()
        self._end_or_go_on()

    def _end_or_go_on(self) -> None:
        reason = scoring.stop_reason(self._plan, self.score)
        if self.round > self._plan.rounds:
            self._finish("completed", f"all {self._plan.rounds} rounds are committed")
        elif reason:
            self._finish("completed", reason)
        else:
            self._select()

    # --- bookkeeping

    def _finish(self, outcome: str, reason: str) -> None:
        self._enter(Phase.ENDED, reason)
        self._do(events.StopTimer())
        self._do(events.Finish(outcome, reason, self.score.is_degraded))

    def _enter(self, phase: Phase, reason: str = "") -> None:
        if (self.phase, phase) not in TRANSITIONS:
            raise RuntimeError(f"no transition from {self.phase.value} to {phase.value}")
        self.phase = phase
        self._do(events.EnterPhase(phase, self.round, reason))

    def _is(self, site: SiteName, *progress: Progress) -> bool:
        standing = self.standings.get(site)
        return standing is not None and standing.progress in progress

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


_HANDLERS: Mapping[type, Callable[[RoundMachine, Any], None]] = {
    events.SiteReady: RoundMachine._on_ready,
    events.SiteLost: RoundMachine._on_lost,
    events.ModelHeld: RoundMachine._on_held,
    events.UpdateAdmitted: RoundMachine._on_admitted,
    events.UpdateRefused: RoundMachine._on_refused,
    events.SiteFailed: RoundMachine._on_failed,
    events.SiteEvaluated: RoundMachine._on_evaluated,
    events.DeadlinePassed: RoundMachine._on_deadline,
    events.MissRecorded: RoundMachine._on_miss_recorded,
    events.Combined: RoundMachine._on_combined,
    events.Committed: RoundMachine._on_committed,
}
