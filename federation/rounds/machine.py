"""The round machine: what happens next, decided from events alone. One round after the other, all sites in step.

`lifecycle` has joining, pausing, evaluating and ending; here is how a round gathers updates. Rules:

1. **Select.** Of the connected sites that are not in quarantine the plan's sampler draws by seed, round and attempt, or
   all are asked where the method needs all (`asks_all`). Sites whose updates are in the spool after a restart are not
   asked again; the others that were drawn are, where the same sites are there (`presence`), else so many as the plan
   says.
2. **Broadcast and collect.** Every drawn site is asked to train. The attempt closes when every asked site is done
   (update admitted or refused, failure, loss), or at the deadline. A lost site that comes back while the attempt is
   open is asked again. What arrives after closing is late.
3. **Quorum.** A closed attempt is aggregated if `quorum` updates are admitted; with quorum None, if all that were
   asked are, and if the site that the rule trusts is among them. Otherwise it is a miss: the miss is written down,
   the updates of the attempt are dropped and their sites told so, and the round is tried again by a new draw; refused
   sites are left out while enough others remain, after a restart too. `max_failures` misses in a row are forgiven; one
   more fails the experiment.
4. **Evaluate.** The candidate of every evaluated round goes to all connected sites that are not in quarantine. One
   that was late, in this round or before, and was not heard of since is still at its task: it is asked like the others
   and its answer counts if it comes while they are waited for, but it is not waited for itself. In the next draw it is
   a site like any other.
5. **Commit.** A round with fewer counted updates than sites asked, or than planned (`sample`, else `sites_wanted`,
   unless the sampler leaves the number to chance), makes the experiment degraded.

A site whose failure is permanent, or that the roster no longer has, is not asked again until it says it is ready.
`TRANSITIONS` is the only list of what may follow what; `describe_states` draws it for the documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from federation.names import Attempt, RoundNumber
from federation.rounds import events, sampling
from federation.rounds.events import Phase, Progress, Standing
from federation.rounds.lifecycle import Lifecycle
from federation.rounds.presence import REJOIN_S
from federation.rounds.transitions import Transitions, draw_states

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.names import SiteName
    from federation.plan import Plan

__all__ = ["REJOIN_S", "TRANSITIONS", "RoundMachine", "describe_states"]

TRANSITIONS: Transitions = {
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
    (Phase.EVALUATE, Phase.COMMIT): "every site not at work answered, or the deadline passed",
    (Phase.COMMIT, Phase.SELECT): "next round",
    (Phase.COMMIT, Phase.ENDED): "last round, or early stopping",
}

_NOT_YET_OPEN = (Phase.JOINING, Phase.SELECT, Phase.PAUSED)
_OPEN = (Phase.BROADCAST, Phase.COLLECT)


def describe_states() -> str:
    """Return the state diagram as Mermaid text, for the documentation."""
    return draw_states(TRANSITIONS)


class RoundMachine(Lifecycle):
    """State of one experiment's rounds.

    Args:
        plan: what the experiment does.
        resume: where to go on; by default before the first round.
        asks_all: tells of a round whether the method needs every connected site in it; None: never.
        trusted: the site without whose update the plan's rule cannot aggregate; None: it needs none in particular.
        weights: examples of each site, as a sampler may want; read at every draw, so the shell may fill it meanwhile.

    Raises:
        PlanError: no such sampler, or it does not go with the plan.
    """

    transitions: ClassVar[Transitions] = TRANSITIONS

    def __init__(
        self,
        plan: Plan,
        resume: events.Resume | None = None,
        *,
        asks_all: Callable[[int], bool] | None = None,
        weights: Mapping[SiteName, int] | None = None,
        trusted: SiteName | None = None,
    ) -> None:
        sampling.check_sampler(plan)
        super().__init__(plan, resume, trusted=trusted)
        self._asks_all = asks_all
        self._weights = weights
        self._asked: tuple[SiteName, ...] = ()
        self._holding: set[SiteName] = set()
        self._miss = ""
        self._foreseen: tuple[tuple[int, int, set[SiteName], int | None], tuple[SiteName, ...]] | None = None

    @property
    def asked(self) -> tuple[SiteName, ...]:
        """Sites of the present attempt, in name order: those drawn, and those whose updates were in at a restart."""
        return self._asked

    @property
    def has_closed(self) -> bool:
        """Whether the present attempt takes no more updates; False while it has not opened yet."""
        return self.phase not in _OPEN and self.phase not in _NOT_YET_OPEN

    def is_asked(self, site: SiteName) -> bool:
        """Whether an update of this site for this round would be taken now."""
        return self.phase in _OPEN and self._is(site, Progress.ASKED)

    # --- one attempt

    def _select(self) -> None:
        self._enter(Phase.SELECT)
        if self._pause_if_too_few():
            return
        kept = {site for site in self.standings if self._is(site, Progress.ADMITTED)}
        refused = {site for site in self.standings if self._is(site, Progress.REFUSED)}
        pool = self._presence.candidates(self.available, kept=kept, held=self.suspicion.sites)
        self._note_present()
        self._presence.forget_pool()
        candidates = pool - kept
        if len(candidates - refused) + len(kept) >= self._plan.sites_needed:
            candidates -= refused
        drawn = self._draw(candidates, kept)
        self._asked = tuple(sorted(kept.union(drawn)))
        self._holding.clear()
        for site in drawn:
            self.standings[site] = Standing(progress=Progress.ASKED)
        self._enter(Phase.BROADCAST)
        self._do(events.StartTimer(self._plan.deadline_s))
        if drawn:
            self._do(events.AskTrain(self.round, self.attempt, drawn))
        self._look_at_collection()

    def foresee(self) -> tuple[SiteName, ...]:
        """See `Lifecycle.foresee`: of uniform draws, which depend on nothing that may change unseen."""
        number = RoundNumber(self.round + 1)
        if self._plan.sampler != "uniform" or (self._asks_all is not None and self._asks_all(number)):
            return ()
        candidates = self.available
        drawn = self._sample(candidates, self._plan.sample, number, Attempt(1))
        self._foreseen = (number, 1, candidates, self._plan.sample), drawn
        return drawn

    def _draw(self, candidates: set[SiteName], kept: set[SiteName]) -> tuple[SiteName, ...]:
        if self._asks_all is not None and self._asks_all(self.round):
            return tuple(sorted(candidates))
        # With the sites that were there before a restart this is the draw of before it.
        drawn = self._sample(candidates | kept if kept else candidates, self._plan.sample, self.round, self.attempt)
        if self._plan.sample is not None and not kept.issubset(drawn):
            drawn = self._sample(candidates, max(self._plan.sample - len(kept), 0), self.round, self.attempt)
        return tuple(site for site in drawn if site not in kept)

    def _sample(
        self, candidates: set[SiteName], count: int | None, number: RoundNumber, attempt: Attempt
    ) -> tuple[SiteName, ...]:
        if self._foreseen is not None and self._foreseen[0] == (number, attempt, candidates, count):
            return self._foreseen[1]
        plan = self._plan
        return sampling.draw_sites(
            candidates,
            sample=count,
            seed=plan.seed,
            round_number=number,
            attempt=attempt,
            sampler=plan.sampler,
            weights=self._weights,
            least=plan.quorum or 1,
        )

    def _on_ready(self, event: events.SiteReady) -> None:
        # Of a task that was answered it says so only because it has not heard that yet.
        is_done = self._is(event.site, Progress.ADMITTED, Progress.REFUSED)
        self._at_work.free(event.site)
        if event.at_work is not None and not (is_done and event.at_work == (self.round, self.attempt)):
            self._at_work.note(event.site, event.at_work)
        super()._on_ready(event)
        self._look_at_evaluation()

    def _on_came_back(self, site: SiteName) -> None:
        if self.phase in _OPEN and self._is(site, Progress.ASKED, Progress.LOST) and site in self._asked:
            self.standings[site] = Standing(progress=Progress.ASKED)
            self._holding.discard(site)
            self._do(events.AskTrain(self.round, self.attempt, (site,)))

    def _on_held(self, event: events.ModelHeld) -> None:
        if self.is_asked(event.site):
            self._holding.add(event.site)
            self._look_at_collection()

    def _on_admitted(self, event: events.UpdateAdmitted) -> None:
        if self.is_asked(event.site):
            self._at_work.free(event.site)
            self.standings[event.site] = Standing(progress=Progress.ADMITTED)
            self._look_at_collection()

    def _on_round_deadline(self) -> None:
        if self.phase in _OPEN:
            for site in self._asked:
                if self._is(site, Progress.ASKED):
                    self._at_work.note(site, (self.round, self.attempt))
                    self.standings[site] = Standing(progress=Progress.LATE, reason="late")
            self._look_at_collection()

    def _look_at_collection(self) -> None:
        is_waiting = is_lacking = False
        for site in self._asked:  # after every answer, so only as far as it takes
            if self.standings[site].progress is Progress.ASKED:
                is_waiting = True
                if site not in self._holding:
                    is_lacking = True
                    break
        if self.phase is Phase.BROADCAST and not is_lacking:
            self._enter(Phase.COLLECT)
        if not is_waiting:
            self._close()

    def _close(self) -> None:
        counted = tuple(site for site in self._asked if self._is(site, Progress.ADMITTED))
        required = self._plan.quorum or len(self._asked)
        if len(counted) >= required and (self._trusted is None or self._trusted in counted):
            self._enter(Phase.AGGREGATE)
            self._do(events.StopTimer())
            self._do(events.Combine(self.round, counted))
            return
        self._miss = self._explain_miss(len(counted), required)
        self._enter(Phase.MISSED, self._miss)
        self._do(events.StopTimer())
        dropped = Standing(progress=Progress.LOST, reason="quorum lost")
        standings = {
            site: dropped if standing.progress is Progress.ADMITTED else standing
            for site, standing in sorted(self.standings.items())
        }
        self._do(events.RecordMiss(self.round, self.attempt, self._miss, standings))

    def _on_overdue(self, _: events.TaskOverdue) -> None:
        """In rounds a task's time is the round's."""

    def _on_miss_recorded(self, _: events.MissRecorded) -> None:
        self._must_be(Phase.MISSED, "a miss was recorded")
        self._send_verdicts(admitted="quorum lost")
        for site in self.standings:
            if self._is(site, Progress.ADMITTED):
                self.standings[site] = Standing(progress=Progress.LOST, reason="quorum lost")
        self._try_again(self._miss)

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
        explained = f"{counted} updates of the {required} needed: {', '.join(missing) or 'none is missing'}"
        if self._trusted is not None and not self._is(self._trusted, Progress.ADMITTED):
            explained += f"; the rule trusts {self._trusted}, whose update is not among them"
        return explained

    # --- the candidate model

    def _on_combined(self, event: events.Combined) -> None:
        self._must_be(Phase.AGGREGATE, "a model was combined")
        self._scores = event.scores
        self._evaluate(self.available)

    def _commit(self) -> None:
        counted = [standing.progress for standing in self.standings.values()].count(Progress.ADMITTED)
        planned = len(self._asked)
        if sampling.takes_count(self._plan.sampler):
            planned = max(self._plan.sample or self._plan.sites_wanted, planned)
        self._commit_round(self.standings, is_degraded=counted < planned)

    def _on_committed(self, _: events.Committed) -> None:
        self._must_be(Phase.COMMIT, "a round was committed")
        self._send_verdicts(admitted="")
        self.standings = {}
        self._asked = ()
        self._go_on()
