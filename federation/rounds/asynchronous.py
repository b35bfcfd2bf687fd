"""The machine of asynchronous methods: sites train whenever they are free, the server steps whenever enough is in.

`lifecycle` has joining, pausing, evaluating and ending; here is how updates are gathered. A *round* is a version of the
model, one step of the server. Source: FedBuff, arXiv:2106.06639, algorithm 1; with a buffer of 1, FedAsync,
arXiv:1903.03934, algorithm 1. Rules:

1. **Ask.** Up to `plan.sample` connected sites train at once (None: all). A site is asked with the version current
   then, and goes on while others come and go; no site has two tasks, nor a task while its update waits in the buffer.
   Free places go to idle sites, drawn by seed, round, attempt and number of the draw, which a restart goes on with. A
   site that comes in a new session while it trains, after a cut or a restart of the aggregator, is told its task again,
   on the version it has.
   One that trained before a restart and is not back when rounds go on counts as lost. One that still trains a deadline
   after it was told its task (again, after a restart) holds no place any more: its update is taken all the same.
2. **Buffer.** Admitted updates wait in the order of their arrival. Their staleness is the number of server steps since
   the site was asked; beyond `max_staleness` an update is refused.
3. **Close.** The round closes when `buffer` updates are in, when no site trains any more and one is in, or (unless
   `ends_at_deadline` is off) at the deadline if one is in. The first `buffer` of them are combined; later ones wait for
   the next round. Updates that arrive meanwhile are taken: the round closes, the experiment does not.
4. **Miss.** A deadline without any update, or every site's failure, is a miss; `max_failures` in a row are forgiven.
   Sites that train go on training, and nothing is dropped.
5. **Evaluate.** Those that contributed evaluate the candidate, before they train again: nobody who is at work is asked.
6. **Commit.** They get their verdicts, and they and all that failed or were refused before it are free again. What ends
   while a commit or a miss is being written down belongs to what is written next. A round of fewer updates than
   `buffer`, or than sites can train at once, makes the experiment degraded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from federation.errors import PlanError
from federation.rounds import events, randomness, sampling
from federation.rounds.events import Phase, Progress, Standing
from federation.rounds.lifecycle import Lifecycle
from federation.rounds.machine import RoundMachine
from federation.rounds.transitions import Transitions, draw_states

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.names import Attempt, RoundNumber, SiteName
    from federation.plan import Plan

TRANSITIONS_ASYNC: Transitions = {
    (Phase.JOINING, Phase.SELECT): "enough sites joined",
    (Phase.JOINING, Phase.ENDED): "too few joined in time",
    (Phase.SELECT, Phase.COLLECT): "idle sites asked",
    (Phase.SELECT, Phase.PAUSED): "too few sites connected",
    (Phase.PAUSED, Phase.SELECT): "sites came back",
    (Phase.PAUSED, Phase.ENDED): "sites did not come back in time",
    (Phase.COLLECT, Phase.AGGREGATE): "the buffer is full, or the deadline passed",
    (Phase.COLLECT, Phase.MISSED): "no update came",
    (Phase.MISSED, Phase.SELECT): "the round is tried again",
    (Phase.MISSED, Phase.ENDED): "no update came too often",
    (Phase.AGGREGATE, Phase.EVALUATE): "the plan evaluates this round",
    (Phase.AGGREGATE, Phase.COMMIT): "the plan does not evaluate this round",
    (Phase.EVALUATE, Phase.COMMIT): "every contributor answered, or the deadline passed",
    (Phase.COMMIT, Phase.SELECT): "next round",
    (Phase.COMMIT, Phase.ENDED): "last round, or early stopping",
}


def describe_async_states() -> str:
    """Return the state diagram as Mermaid text, for the documentation."""
    return draw_states(TRANSITIONS_ASYNC)


class AsyncMachine(Lifecycle):
    """State of one asynchronous experiment.

    Args:
        plan: what the experiment does.
        resume: where to go on; by default before the first round.
        buffer: updates that make a step, K.
        max_staleness: steps that may lie between a site's task and its update; None: any number.
        ends_at_deadline: the deadline closes a round with what is in; else it goes on while sites train.
        weights: examples of each site, as a sampler may want; read at every draw.

    Raises:
        ValueError: `buffer` is less than 1.
        PlanError: the plan's sampler does not exist or is for rounds only.
    """

    transitions: ClassVar[Transitions] = TRANSITIONS_ASYNC

    def __init__(
        self,
        plan: Plan,
        resume: events.Resume | None = None,
        *,
        buffer: int,
        max_staleness: int | None = None,
        ends_at_deadline: bool = True,
        weights: Mapping[SiteName, int] | None = None,
    ) -> None:
        if buffer < 1:
            raise ValueError(f"a buffer holds at least 1 update, got {buffer}")
        if not sampling.takes_count(plan.sampler):
            raise PlanError(f"sampler {plan.sampler!r} draws whole rounds; an asynchronous method needs another")
        super().__init__(plan, resume)
        resume = resume or events.Resume()
        self._buffer_size = buffer
        self._max_staleness = max_staleness
        self._ends_at_deadline = ends_at_deadline
        self._overdue_s = None if plan.sample is None else plan.deadline_s
        self._weights = weights
        present = (resume.round, resume.attempt)
        self._tasks = {site: resume.asked.get(site, present) for site in (*resume.training, *resume.admitted)}
        self._buffer = list(resume.admitted)
        self._counted: tuple[SiteName, ...] = ()
        self._settling: dict[SiteName, Standing] = {}
        self._overdue: set[SiteName] = set(resume.overdue)
        self._draws = resume.draws
        self._miss = ""
        self._untold: set[SiteName] = set()
        self._knowing: set[SiteName] = set(resume.training) if resume.knows_tasks else set()
        for site in resume.training:
            self.standings[site] = Standing(progress=Progress.ASKED)

    @property
    def asked(self) -> tuple[SiteName, ...]:
        """Sites that train, and those of this round that have answered or will not, in name order."""
        return tuple(sorted(self.standings))

    @property
    def has_closed(self) -> bool:
        """Whether updates are taken no more: only once the experiment has ended."""
        return self.phase is Phase.ENDED

    @property
    def training(self) -> tuple[SiteName, ...]:
        """Sites that train now, in name order."""
        return tuple(site for site in sorted(self.standings) if self._is(site, Progress.ASKED))

    @property
    def overdue(self) -> tuple[SiteName, ...]:
        """Sites that have trained for longer than a deadline and hold no place any more, in name order."""
        return tuple(site for site in self.training if site in self._overdue)

    @property
    def waiting(self) -> tuple[SiteName, ...]:
        """Sites whose updates wait in the buffer, in the order of their arrival."""
        return tuple(self._buffer)

    @property
    def settling(self) -> dict[SiteName, tuple[RoundNumber, Attempt]]:
        """Task of each site that is settled by the commit or miss that is being written down."""
        return {site: self._tasks[site] for site in self._settling}

    def is_asked(self, site: SiteName) -> bool:
        """Whether an update of this site would be taken now."""
        return self.phase is not Phase.ENDED and self._is(site, Progress.ASKED)

    def task_of(self, site: SiteName) -> tuple[RoundNumber, Attempt]:
        """Return round and attempt of the task that a site works on or has answered.

        Raises:
            KeyError: it has none.
        """
        return self._tasks[site]

    def staleness(self, site: SiteName) -> int:
        """Return the server steps since a site was asked, as they count in the round it would be part of.

        Raises:
            KeyError: it has no task.
        """
        # While a version is made, what arrives is part of the next one.
        is_next = self.phase in (Phase.AGGREGATE, Phase.EVALUATE, Phase.COMMIT) and site not in self._counted
        return self.round + is_next - self._tasks[site][0]

    # --- asking

    def _on_ready(self, event: events.SiteReady) -> None:
        if event.site in self._knowing:
            self._knowing.discard(event.site)
        elif self.is_asked(event.site):
            self._untold.add(event.site)
        super()._on_ready(event)

    def _select(self) -> None:
        self._enter(Phase.SELECT)
        if self._pause_if_too_few():
            return
        self._note_present()
        for site in self.connected:
            if self._is(site, Progress.LOST):  # it was lost, and came back while nothing was asked
                del self.standings[site]
        for site in self.training:
            if site not in self.connected:  # it has had no session since a restart: nobody would tell of its loss
                self.standings[site] = Standing(progress=Progress.LOST, reason="did not come back")
        self._enter(Phase.COLLECT)
        self._do(events.StartTimer(self._plan.deadline_s))
        self._tell_again()
        # Even if the buffer is full already: those who contributed go on, on this version.
        self._fill()
        self._look_at_collection()

    def _fill(self) -> None:
        """Ask idle sites for the free places."""
        busy = len(self.training) - len(self.overdue)
        idle = sorted(self.available.difference(self.standings))
        room = len(idle) if self._plan.sample is None else self._plan.sample - busy
        if not idle or room <= 0:
            return
        drawn, draws = tuple(idle), 0
        if room < len(idle):
            purpose = f"sampling/{self.attempt}/{self._draws}"
            rng = randomness.stream(self._plan.seed, self.round, "", purpose)
            draws = self._draws = self._draws + 1
            draw = sampling.Draw(candidates=idle, count=room, weights=self._weights or {}, rng=rng)
            drawn = tuple(sorted(sampling.load_sampler(self._plan.sampler).draw(draw)))
        for site in drawn:
            self.standings[site] = Standing(progress=Progress.ASKED)
            self._tasks[site] = (self.round, self.attempt)
        self._overdue.difference_update(drawn)
        self._do(events.AskTrain(self.round, self.attempt, drawn, self._overdue_s, draws))

    def _tell_again(self) -> None:
        """Tell sites that work, in their new sessions, what they work on."""
        untold, self._untold = self._untold, set()
        tasks: dict[tuple[RoundNumber, Attempt], list[SiteName]] = {}
        for site in sorted(untold):
            if self.is_asked(site):
                tasks.setdefault(self._tasks[site], []).append(site)
        for task, sites in sorted(tasks.items()):
            self._do(events.AskTrain(*task, tuple(sites), self._overdue_s))

    def _on_came_back(self, site: SiteName) -> None:
        if self.is_asked(site):
            self._tell_again()
            return
        if self._is(site, Progress.LOST):
            del self.standings[site]
        self._look_at_collection()

    # --- the buffer

    def _on_held(self, event: events.ModelHeld) -> None:
        pass

    def _on_admitted(self, event: events.UpdateAdmitted) -> None:
        site = event.site
        if not self.is_asked(site) or event.asked_round not in (None, self._tasks[site][0]):
            return
        if self._max_staleness is not None and self.staleness(site) > self._max_staleness:
            reason = f"too stale: {self.staleness(site)} steps, at most {self._max_staleness} are taken"
            self._set_aside(site, Progress.REFUSED, reason)
            return
        self.standings[site] = Standing(progress=Progress.ADMITTED)
        self._buffer.append(site)
        self._look_at_collection()

    def _look_at_collection(self) -> None:
        if self.phase is not Phase.COLLECT:
            return
        if len(self._buffer) < self._buffer_size:
            self._fill()
        if len(self._buffer) >= self._buffer_size or (self._buffer and not self.training):
            self._close()
        elif not self.training:
            self._record_miss("no site trains any more")

    def _on_round_deadline(self) -> None:
        if self.phase is not Phase.COLLECT:
            return
        if not self._buffer:
            self._record_miss(f"no update within {self._plan.deadline_s:g} s")
        elif self._ends_at_deadline:
            self._close()
        else:
            self._do(events.StartTimer(self._plan.deadline_s))

    def _on_overdue(self, event: events.TaskOverdue) -> None:
        site = event.site
        if self.is_asked(site) and self._tasks[site] == (event.round, event.attempt):
            self._overdue.add(site)
            self._look_at_collection()

    def _close(self) -> None:
        self._counted = tuple(sorted(self._buffer[: self._buffer_size]))
        del self._buffer[: self._buffer_size]
        self._enter(Phase.AGGREGATE)
        self._do(events.StopTimer())
        self._do(events.Combine(self.round, self._counted, {site: self._tasks[site][0] for site in self._counted}))

    def _record_miss(self, why: str) -> None:
        self._settling = self._done_standings()
        ended = [
            f"{site} {standing.progress.value}" + (f" ({standing.reason})" if standing.reason else "")
            for site, standing in self._settling.items()
        ]
        self._miss = ": ".join([why, ", ".join(ended)]) if ended else why
        self._enter(Phase.MISSED, self._miss)
        self._do(events.StopTimer())
        self._do(events.RecordMiss(self.round, self.attempt, self._miss))

    def _on_miss_recorded(self, _: events.MissRecorded) -> None:
        self._must_be(Phase.MISSED, "a miss was recorded")
        self._send_verdicts()
        self._free_done()
        self._try_again(self._miss)

    # --- the candidate model

    def _on_combined(self, event: events.Combined) -> None:
        self._must_be(Phase.AGGREGATE, "a model was combined")
        self._scores = event.scores
        self._evaluate(self.available.intersection(self._counted))

    def _commit(self) -> None:
        self._settling = self._done_standings()
        planned = min(self._buffer_size, self._plan.sample or self._plan.sites_wanted)
        self._commit_round(self._settling, is_degraded=len(self._counted) < planned)

    def _on_committed(self, _: events.Committed) -> None:
        self._must_be(Phase.COMMIT, "a round was committed")
        self._send_verdicts()
        self._free_done()
        self._go_on()

    def _done_standings(self) -> dict[SiteName, Standing]:
        """Return, in name order, how those stand that neither train nor wait in the buffer."""
        kept = {*self.training, *self._buffer}
        return {site: standing for site, standing in sorted(self.standings.items()) if site not in kept}

    def _send_verdicts(self) -> None:
        reasons = {
            site: "" if standing.progress is Progress.ADMITTED else standing.reason
            for site, standing in self._settling.items()
            if site in self._counted or standing.progress is Progress.REFUSED
        }
        asked = {site: self._tasks[site] for site in reasons}
        self._do(events.SendVerdicts(self.round, self.attempt, reasons, asked))

    def _free_done(self) -> None:
        """Forget what is settled: its sites are idle again, and another attempt begins."""
        for site in self._settling:
            self.standings.pop(site, None)  # one that was lost may have come back meanwhile
            del self._tasks[site]
        self._settling = {}
        self._counted = ()
        self._draws = 0


Machine = RoundMachine | AsyncMachine
"""What a shell obeys."""


def machine_for(
    plan: Plan,
    mode: Literal["rounds", "buffer"],
    resume: events.Resume | None = None,
    *,
    asks_all: Callable[[int], bool] | None = None,
    weights: Mapping[SiteName, int] | None = None,
    trusted: SiteName | None = None,
    buffer: int | None = None,
    max_staleness: int | None = None,
    ends_at_deadline: bool = True,
) -> Machine:
    """Return the machine of an algorithm.

    Args:
        plan: what the experiment does.
        mode: the algorithm's mode.
        resume: where to go on.
        asks_all: as `RoundMachine` takes it; only for mode ``rounds``.
        weights: as both take it.
        trusted: as `RoundMachine` takes it; only for mode ``rounds``.
        buffer: as `AsyncMachine` takes it; None: the plan's quorum, or 1.
        max_staleness: as `AsyncMachine` takes it.
        ends_at_deadline: as `AsyncMachine` takes it.

    Raises:
        PlanError: the plan's sampler does not exist or does not go with the plan or the mode.
    """
    if mode == "rounds":
        return RoundMachine(plan, resume, asks_all=asks_all, weights=weights, trusted=trusted)
    return AsyncMachine(
        plan,
        resume,
        buffer=plan.quorum or 1 if buffer is None else buffer,
        max_staleness=max_staleness,
        ends_at_deadline=ends_at_deadline,
        weights=weights,
    )
