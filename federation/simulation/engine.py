"""The one loop of a simulation: obeys the round machine as the aggregator's driver does, in simulated time.

Rules:

1. Events happen in the order of `federation.simulation.agenda`; what sites do, and when it shows, is that of
   `federation.simulation.site_work`.
2. The next event is taken only when every action of the last one is done, so nothing overlaps but workers' own work.
3. Deadlines are simulated seconds. They pass while answers are awaited only if a time model or a script is given:
   without one nobody asked for stragglers, and the default times are merely reported.
4. A site that a script took away is ready again before the round it comes back in is drawn, or, while the experiment is
   paused for want of sites, next of all.
5. What a committed synchronous round leaves to be written down (its record, the run folder, whoever listens) is done
   when the tasks of the next round are with the workers, or when there are none; always before an answer of theirs is
   looked at. If the run is to stop by then, those tasks are as if they had never been given.
6. Between two synchronous rounds only those are at work who were late; when they are done the machine is told that they
   are free. Between two steps of an asynchronous method much is under way: `under_way` says what, `resume` goes on.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from federation.algorithms.server import count_sites
from federation.errors import PlanError, UpdateRejectedError
from federation.rounds import events
from federation.rounds.admission import NormWindow, check_norm
from federation.rounds.asynchronous import AsyncMachine
from federation.rounds.events import Phase
from federation.rounds.machine import RoundMachine
from federation.simulation.agenda import Agenda
from federation.simulation.book import RoundBook, Update
from federation.simulation.roles import NoSpans
from federation.simulation.site_work import SiteWork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.names import Attempt, RoundNumber, SiteName
    from federation.plan import ExperimentSpec
    from federation.rounds.history import RoundRecord
    from federation.simulation.bench import Failure
    from federation.simulation.executors import Executor
    from federation.simulation.models import Models
    from federation.simulation.roles import Machine, Spans, Tampering
    from federation.simulation.script import Script
    from federation.simulation.times import TimeModel
    from federation.simulation.under_way import UnderWay


class Engine:
    """Runs one simulation to its end.

    Args:
        spec: the experiment.
        machine: its round machine, not started.
        sites: every site there is, with its training examples.
        models: models and server state.
        executor: who works for the sites.
        times: what takes how long.
        script: what goes wrong.
        enforces_deadlines: rule 3.
        clock: simulated seconds at which it begins.
        on_commit: told of each commit after the models have changed places, to take note of where the run is; returns
            what is called with the round's record, by rule 5.
        is_stopping: asked after each commit and when it is written down; True ends the run, to be resumed.
        profile: where times are noted.
        tampering: writes the updates of hostile sites; None: all are honest.

    Attributes:
        agenda: what is to happen, and the clock.
        absent: round at which each site that is away is ready.
        norms: of the updates of the last committed rounds.
    """

    def __init__(
        self,
        *,
        spec: ExperimentSpec,
        machine: Machine,
        sites: Mapping[SiteName, int],
        models: Models,
        executor: Executor,
        times: TimeModel,
        script: Script,
        enforces_deadlines: bool,
        clock: float = 0.0,
        on_commit: Callable[[events.Commit], Callable[[RoundRecord], None]],
        is_stopping: Callable[[], bool] = lambda: False,
        profile: Spans | None = None,
        tampering: Tampering | None = None,
    ) -> None:
        self.agenda = Agenda(enforces_deadlines=enforces_deadlines, clock=clock)
        self.book = RoundBook(byzantine=spec.plan.byzantine)
        self.absent: dict[SiteName, int] = {}
        self.norms = NormWindow()
        self._spans = profile or NoSpans()
        self._spec = spec
        self._machine = machine
        self._sites = sites
        self._models = models
        self._times = times
        self._script = script
        self._work = SiteWork(
            spec=spec,
            machine=machine,
            sites=sites,
            models=models,
            executor=executor,
            times=times,
            script=script,
            agenda=self.agenda,
            book=self.book,
            spans=self._spans,
            tampering=tampering,
        )
        self._on_commit = on_commit
        self._is_stopping = is_stopping
        self._actions: deque[events.Action] = deque()
        self._combined: dict[SiteName, Update] = {}
        self._round_began = 0.0
        self._finish: events.Finish | None = None
        self._unwritten: Callable[[], None] | None = None
        self._at_work: dict[SiteName, tuple[RoundNumber, Attempt]] = {}

    def run(self) -> events.Finish | None:
        """Run to the end and return it; None if `is_stopping` said so first.

        Raises:
            SimulationError: a worker died, twice.
            StorageError: the state of a site, or the run folder, cannot be written.
        """
        self._round_began = self.agenda.clock
        self._actions.extend(self._machine.start())
        for site in sorted(self._sites):
            if self._script.joining(site) > self._machine.round:
                self.absent.setdefault(site, self._script.joining(site))
            if self.absent.get(site, 0) <= self._machine.round:
                self.absent.pop(site, None)
                # Before anything that was under way.
                self.agenda.note(-math.inf, site, events.SiteReady(site, self._at_work.get(site)))
        try:
            while self._finish is None:
                while self._actions:
                    if self._perform(self._actions.popleft()):
                        return None
                if self._write_down() and self._finish is None:
                    return None
                if self._finish is None:
                    self._actions.extend(self._machine.step(self._next_event()))
        except PlanError as error:
            self._write_down()
            return events.Finish("failed", f"round {self._machine.round}: {error}", True)
        return self._finish

    @property
    def failures(self) -> list[tuple[RoundNumber, SiteName, Failure]]:
        """What failed at sites, in the order of their answers."""
        return self._work.failures

    def under_way(self) -> UnderWay:
        """Return what goes on beyond the round that is being committed; to be asked while it is."""
        return self._work.under_way()

    def resume(self, under_way: UnderWay) -> None:
        """Go on with what an earlier run left; before `run`, with a machine that knows of it."""
        self._work.resume(under_way)
        self._at_work = {site: under_way.asked[site] for site in under_way.training}

    # --- events in

    def _next_event(self) -> events.Event:
        if row := self.agenda.take():
            _, site, number, event = row
            known = self._arrived(site, number, event)
            return self._next_event() if known is None else known
        # A run that goes on may find itself paused before its first draw.
        is_paused = self._machine.phase is Phase.PAUSED or (
            self._machine.phase is Phase.JOINING and self._machine.round > 1
        )
        if is_paused and self.absent:
            site = min(self.absent, key=lambda name: (self.absent[name], name))
            del self.absent[site]
            return events.SiteReady(site)
        # Sites that are still to come at the start, by the script, are not waited for: no time passes.
        if not self.agenda.take_timer(passes=self._machine.phase is not Phase.JOINING):
            raise RuntimeError(f"nothing is left to happen in phase {self._machine.phase.value}")
        return events.DeadlinePassed()

    def _arrived(self, site: SiteName, number: int, event: events.Event) -> events.Event | None:
        """Return what an event means now that it happens; None if nothing: it answers a task that was over before."""
        if isinstance(event, events.SiteLost):
            back = self._work.leaving.pop(site, None)
            if back is None:
                return None
            self.absent[site] = back
        elif isinstance(event, events.SiteReady | events.TaskOverdue):
            return event
        elif not self.agenda.means_something(site, number):
            return None
        elif (task := self.agenda.ended(site, number)) and self._is_over(site):
            return events.SiteFree(site, *task)
        elif isinstance(event, events.UpdateAdmitted) and site in self._work.updates:
            try:
                check_norm(self._work.updates[site].norm, self._spec.plan, self.norms)
            except UpdateRejectedError as error:
                return events.UpdateRefused(site, str(error), error.norm)
        return event

    def _is_over(self, site: SiteName) -> bool:
        """Whether nobody awaits the end of a site's task any more."""
        return isinstance(self._machine, RoundMachine) and not self._machine.is_asked(site)

    # --- actions out

    def _perform(self, action: events.Action) -> bool:
        """Do what the machine says; returns whether the run is to stop here."""
        if isinstance(action, events.EnterPhase):
            self.book.enter(action.phase)
        elif isinstance(action, events.StartTimer):
            self.agenda.start_timer(action.seconds)
        elif isinstance(action, events.StopTimer):
            self.agenda.stop_timer()
        elif isinstance(action, events.AskTrain):
            return self._work.train(action, when_given=self._write_down)
        elif isinstance(action, events.AskEvaluate):
            self._work.evaluate(action)
        elif isinstance(action, events.Combine):
            self._combine(action)
        elif isinstance(action, events.Commit):
            return self._commit(action)
        elif isinstance(action, events.SendVerdicts):
            self._work.settle(action)
        elif isinstance(action, events.RecordMiss):
            self._actions.extend(self._machine.step(events.MissRecorded()))
        elif isinstance(action, events.Finish):
            self._finish = action
        elif not isinstance(action, events.RecordPresent):  # the script says who is there, and a checkpoint knows it
            raise RuntimeError(f"nobody releases sites in a simulation, but the machine says {action}")
        return False

    def _combine(self, action: events.Combine) -> None:
        self.agenda.pass_time(self._times.server_s)
        self._combined = {site: self._work.updates[site] for site in action.sites}
        total = count_sites(self._models.total, len(self._machine.connected), self._spec.plan)
        with self._spans.span("combine"):
            try:
                self._models.combine(action.round, list(self._combined.values()), total)
            except ValueError as error:
                raise PlanError(str(error)) from error
        candidate = self._models.candidate
        self._actions.extend(self._machine.step(events.Combined(candidate.scores if candidate is not None else {})))

    def _commit(self, action: events.Commit) -> bool:
        candidate = self._models.candidate
        if candidate is None:
            raise RuntimeError("there is no candidate to commit")
        self._write_down()
        total = count_sites(self._models.total, len(self._machine.connected), self._spec.plan)
        simulated, combined, self._round_began = (
            self.agenda.clock - self._round_began,
            self._combined,
            self.agenda.clock,
        )
        self.agenda.forget_evaluations()
        with self._spans.span("commit"):
            self._models.commit()
            # Before the round is recorded: a checkpoint has both its model and the state of its sites, or neither.
            self._work.promote(list(self._combined.values()))
            on_record = self._on_commit(action)
        page = self.book.close()

        def write_down() -> None:
            with self._spans.span("record"):
                record = page.record(action, candidate, combined, simulated_seconds=simulated, total_sites=total)
                self.norms = self.norms.after(record)
                on_record(record)

        self._unwritten = write_down
        is_last = action.round >= self._spec.plan.rounds
        # What is under way between asynchronous rounds could not be taken back.
        if self._is_stopping() or isinstance(self._machine, AsyncMachine):
            self._write_down()
            if self._is_stopping() and not is_last:
                return True
        self._return(action.round + 1)
        self._actions.extend(self._machine.step(events.Committed()))
        return False

    def _write_down(self) -> bool:
        """Write down what a commit left, if it left something; returns whether the run is to stop where that was."""
        todo, self._unwritten = self._unwritten, None
        if todo is None:
            return False
        todo()
        return self._is_stopping()

    def _return(self, round_number: int) -> None:
        """Rule 4: sites that are back for a round are ready before it is drawn."""
        for site in sorted(site for site, back in self.absent.items() if back <= round_number):
            del self.absent[site]
            self._actions.extend(self._machine.step(events.SiteReady(site)))
