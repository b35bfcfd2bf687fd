"""What every way to run rounds has in common: joining, pausing, evaluating, committing and ending.

Events go into `Lifecycle.step`, actions come out; nothing here waits, reads a clock or touches a file. `machine` asks
sites round by round, `asynchronous` whenever one is free; both say only how updates are gathered. Rules they share:

1. **Joining.** The first round starts when `plan.sites_wanted` sites are ready. When `join_timeout_s` runs out it
   starts with fewer, if there are enough for a round; otherwise the experiment fails. A restarted aggregator waits for
   the sites that were there before instead, `REJOIN_S` at most, then for enough (`presence`).
2. **Pausing.** With fewer than `plan.sites_needed` sites that are connected or have an admitted update in the spool the
   experiment is paused until enough are back, or fails after `join_timeout_s`.
3. **Evaluating.** The phase ends when each site that was asked has answered, failed, is lost or is still at work
   (`evaluation`), or at the deadline; the metrics are the mean of those that answered, weighted by their examples. Of
   the others it is said why not. No answer at all leaves the round without metrics; it is committed all the same.
4. **Quarantine.** By the plan's policy a commit may quarantine sites (`quarantine`). They stay connected and are not
   asked; wherever sites are counted they are not. A released one is treated as a site that just became ready.
5. **Committing.** Best model and early stopping follow the plan's measure. A round with fewer counted updates than
   planned makes the experiment degraded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from federation.names import Attempt, RoundNumber, SiteName
from federation.rounds import events, quarantine, scoring
from federation.rounds.evaluation import AtWork, Evaluation
from federation.rounds.events import Action, Event, Phase, Progress, Standing
from federation.rounds.presence import Presence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.plan import Plan
    from federation.rounds.transitions import Transitions


class Lifecycle:
    """State of one experiment's rounds, but for how updates are gathered.

    Args:
        plan: what the experiment does.
        resume: where to go on; by default before the first round.
        trusted: the site the plan's rule trusts, if any.
    """

    transitions: ClassVar[Transitions]

    def __init__(self, plan: Plan, resume: events.Resume | None = None, *, trusted: SiteName | None = None) -> None:
        resume = resume or events.Resume()
        self._trusted = trusted
        self.phase = Phase.JOINING
        self.round = resume.round
        self.attempt = resume.attempt
        self.score = resume.score
        self.suspicion = resume.suspicion
        self.connected: set[SiteName] = set()
        admitted = dict.fromkeys(resume.admitted, Standing(progress=Progress.ADMITTED))
        self.standings: dict[SiteName, Standing] = {**resume.standings, **admitted}
        self._plan = plan
        self._presence = Presence(plan, resume)
        self._at_work = AtWork()
        self._evaluation = Evaluation((), self._at_work)
        self._scores: Mapping[SiteName, Mapping[str, float]] = {}
        self._actions: list[Action] = []

    # --- what a machine decides

    @property
    def asked(self) -> tuple[SiteName, ...]:
        """Sites that are asked to train, or were and have answered, in name order."""
        raise NotImplementedError

    @property
    def has_closed(self) -> bool:
        """Whether no more updates are taken for now; False while no round has opened yet."""
        raise NotImplementedError

    def is_asked(self, site: SiteName) -> bool:
        """Whether an update of this site would be taken now."""
        raise NotImplementedError

    def foresee(self) -> tuple[SiteName, ...]:
        """Return the sites that the next round will ask if nothing comes between; empty: that cannot be said."""
        return ()

    def _select(self) -> None:
        """Open a round, or pause."""
        raise NotImplementedError

    def _on_came_back(self, site: SiteName) -> None:
        """Take in a site that is ready, joining, pausing and evaluating aside."""
        raise NotImplementedError

    def _on_round_deadline(self) -> None:
        """Take in that the timer of an open round has run out."""
        raise NotImplementedError

    def _look_at_collection(self) -> None:
        """See whether the round can close."""
        raise NotImplementedError

    def _on_held(self, event: events.ModelHeld) -> None:
        raise NotImplementedError

    def _on_admitted(self, event: events.UpdateAdmitted) -> None:
        raise NotImplementedError

    def _on_overdue(self, event: events.TaskOverdue) -> None:
        raise NotImplementedError

    def _on_miss_recorded(self, event: events.MissRecorded) -> None:
        raise NotImplementedError

    def _on_combined(self, event: events.Combined) -> None:
        raise NotImplementedError

    def _on_committed(self, event: events.Committed) -> None:
        raise NotImplementedError

    def _commit(self) -> None:
        """Decide about the candidate model."""
        raise NotImplementedError

    # --- what is the same for all

    @property
    def available(self) -> set[SiteName]:
        """Sites that are connected and not in quarantine; a set of its own."""
        return self.connected - self.suspicion.sites

    @property
    def done(self) -> int:
        """How many of the asked sites have answered, or will not."""
        return sum(1 for site in self.asked if self.standings[site].progress is not Progress.ASKED)

    def is_admitted(self, site: SiteName) -> bool:
        """Whether this site's update for this round is in."""
        return self._is(site, Progress.ADMITTED)

    def is_evaluating(self, site: SiteName) -> bool:
        """Whether metrics of the candidate are awaited from this site."""
        return self.phase is Phase.EVALUATE and self._evaluation.is_open(site)

    def start(self) -> list[Action]:
        """Return the first actions. To be called once, before any event."""
        self._actions = [events.EnterPhase(Phase.JOINING, self.round)]
        if self.round > self._plan.rounds or scoring.stop_reason(self._plan, self.score):
            # The process died between its last commit and the end: nothing is left to do but to say so.
            self.phase = Phase.COMMIT
            self._end_or_go_on()
        else:
            self._do(events.StartTimer(self._presence.first_wait_s))
        return self._take()

    def step(self, event: Event) -> list[Action]:
        """Take in one event and return what to do, in order. Events that mean nothing now are ignored."""
        handler: Callable[[Any], None] = getattr(self, _HANDLERS[type(event)])
        handler(event)
        return self._take()

    # --- events about sites

    def _on_ready(self, event: events.SiteReady) -> None:
        self.connected.add(event.site)
        self._note_present()
        if event.site not in self.suspicion.sites:
            self._welcome(event.site)

    def _on_released(self, event: events.SiteReleased) -> None:
        before = self.suspicion
        self.suspicion = quarantine.release(before, event.site, event.releases)
        if self.suspicion == before:
            return
        self._do(events.RecordRelease(event.site, event.releases, self._drawn))
        self._presence.leave_out(event.site)
        if event.site in self.connected & before.sites:
            self._welcome(event.site)

    def _welcome(self, site: SiteName) -> None:
        """Take in that a site may be asked."""
        if self.phase is Phase.JOINING:
            self._maybe_begin()
        elif self.phase is Phase.PAUSED:
            if len(self._participants()) >= self._plan.sites_needed:
                self._select()
        elif self.is_evaluating(site):
            self._do(events.AskEvaluate(self.round, (site,)))
        else:
            self._on_came_back(site)

    def _on_free(self, event: events.SiteFree) -> None:
        self._at_work.free(event.site, (event.round, event.attempt))

    def _on_lost(self, event: events.SiteLost) -> None:
        self.connected.discard(event.site)
        self._note_present()
        self._set_aside(event.site, Progress.LOST, event.reason)

    def _on_failed(self, event: events.SiteFailed) -> None:
        if event.permanent:
            self.connected.discard(event.site)
            self._note_present()
        self._set_aside(event.site, Progress.FAILED, event.reason)

    def _on_refused(self, event: events.UpdateRefused) -> None:
        if self.is_asked(event.site):
            self._set_aside(event.site, Progress.REFUSED, event.reason, norm=event.norm)

    def _set_aside(self, site: SiteName, progress: Progress, reason: str, *, norm: float = 0.0) -> None:
        self._at_work.free(site)  # whoever is lost says what it is at when it comes back
        if self.is_asked(site):
            self.standings[site] = Standing(progress=progress, reason=reason, norm=norm)
            self._look_at_collection()
        elif self.is_evaluating(site):
            self._evaluation.set_aside(site, reason)
            self._look_at_evaluation()

    # --- joining and pausing

    def _participants(self) -> set[SiteName]:
        admitted = {site for site, standing in self.standings.items() if standing.progress is Progress.ADMITTED}
        return self.available | admitted if admitted else self.available

    def _say_present(self) -> str:
        """Return how many sites there are for a round, and who could be released."""
        held = sorted(self.connected & self.suspicion.sites)
        also = f" and {', '.join(held)} in quarantine (`federation release` lets one out)" if held else ""
        return f"{len(self._participants())} sites are connected{also}"

    def _maybe_begin(self) -> None:
        if self._presence.is_complete(self.connected, self.suspicion.sites, len(self._participants())):
            self._select()

    def _on_deadline(self, _: events.DeadlinePassed) -> None:
        if self.phase is Phase.JOINING:
            self._on_join_timeout()
        elif self.phase is Phase.PAUSED:
            self._finish(
                "failed", f"{self._say_present()}, {self._plan.sites_needed} are needed, and no more came back"
            )
        elif self.phase is Phase.EVALUATE:
            self._end_evaluation()
        else:
            self._on_round_deadline()

    def _on_join_timeout(self) -> None:
        present = len(self._participants())
        if present >= self._plan.sites_needed:
            self._select()
        elif self._presence.extend():
            self._do(events.StartTimer(self._plan.join_timeout_s))
        else:
            self._finish("failed", f"{present} sites joined in time, but a round needs {self._plan.sites_needed}")

    @property
    def _drawn(self) -> tuple[RoundNumber, Attempt] | None:
        """Round and attempt, if they have been drawn."""
        is_open = self.phase not in (Phase.JOINING, Phase.SELECT, Phase.PAUSED)
        return (self.round, self.attempt) if is_open or self._presence.has_pool else None

    def _note_present(self) -> None:
        """Have it written down who is there, if that is not known: before the first draw nobody needs to know."""
        if self.phase not in (Phase.JOINING, Phase.ENDED):
            self._actions += self._presence.note(self.connected, self._drawn)

    def _pause_if_too_few(self) -> bool:
        if len(self._participants()) >= self._plan.sites_needed:
            return False
        self._enter(Phase.PAUSED, f"{self._say_present()}, a round needs {self._plan.sites_needed}")
        self._do(events.StartTimer(self._plan.join_timeout_s))
        return True

    # --- the candidate model

    def _evaluate(self, sites: set[SiteName]) -> None:
        """Have these sites evaluate the candidate if the plan wants it, then commit."""
        asked = tuple(sorted(sites)) if self._plan.is_evaluated(self.round) else ()
        self._evaluation = Evaluation(asked, self._at_work)
        if asked:
            self._enter(Phase.EVALUATE)
            self._do(events.StartTimer(self._plan.deadline_s))
            self._do(events.AskEvaluate(self.round, asked))
            self._look_at_evaluation()
        else:
            self._commit()

    def _on_evaluated(self, event: events.SiteEvaluated) -> None:
        if self.is_evaluating(event.site):
            self._at_work.free(event.site)
            self._evaluation.take(event)
            self._look_at_evaluation()

    def _look_at_evaluation(self) -> None:
        if self.phase is Phase.EVALUATE and self._evaluation.is_over:
            self._end_evaluation()

    def _end_evaluation(self) -> None:
        self._evaluation.end()
        self._do(events.StopTimer())
        self._commit()

    def _commit_round(self, standings: Mapping[SiteName, Standing], *, is_degraded: bool) -> None:
        self._enter(Phase.COMMIT)
        metrics = scoring.federated_metrics(self._evaluation.answers, byzantine=self._plan.byzantine)
        self.suspicion = quarantine.judge(
            self._plan.quarantine,
            self.suspicion,
            self.round,
            self._scores,
            trusted=self._trusted,
            byzantine=self._plan.byzantine,
        )
        self.score, is_best = scoring.judge(self._plan, self.score, self.round, metrics, is_degraded=is_degraded)
        self._do(
            events.Commit(
                round=self.round,
                attempt=self.attempt,
                standings=dict(sorted(standings.items())),
                metrics=metrics,
                evaluations=dict(sorted(self._evaluation.answers.items())),
                unevaluated=dict(sorted(self._evaluation.missing.items())),
                is_best=is_best,
                score=self.score,
                suspicion=self.suspicion,
            )
        )

    def _go_on(self) -> None:
        self.round, self.attempt = RoundNumber(self.round + 1), Attempt(1)
        self._end_or_go_on()

    def _try_again(self, reason: str) -> None:
        if self.attempt > self._plan.max_failures:
            self._finish("failed", f"round {self.round} missed its quorum {self.attempt} times in a row; {reason}")
            return
        self.attempt = Attempt(self.attempt + 1)
        self._select()

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
        if (self.phase, phase) not in self.transitions:
            raise RuntimeError(f"no transition from {self.phase.value} to {phase.value}")
        self.phase = phase
        self._do(events.EnterPhase(phase, self.round, reason))

    def _must_be(self, phase: Phase, what: str) -> None:
        if self.phase is not phase:
            raise RuntimeError(f"{what} in phase {self.phase.value}")

    def _is(self, site: SiteName, *progress: Progress) -> bool:
        standing = self.standings.get(site)
        return standing is not None and standing.progress in progress

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


_HANDLERS: Mapping[type, str] = {
    events.SiteReady: "_on_ready",
    events.SiteFree: "_on_free",
    events.SiteLost: "_on_lost",
    events.ModelHeld: "_on_held",
    events.UpdateAdmitted: "_on_admitted",
    events.UpdateRefused: "_on_refused",
    events.SiteFailed: "_on_failed",
    events.SiteEvaluated: "_on_evaluated",
    events.DeadlinePassed: "_on_deadline",
    events.TaskOverdue: "_on_overdue",
    events.MissRecorded: "_on_miss_recorded",
    events.Combined: "_on_combined",
    events.Committed: "_on_committed",
    events.SiteReleased: "_on_released",
}
