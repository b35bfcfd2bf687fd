"""The one loop of a simulation: obeys the round machine as the aggregator's driver does, in simulated time.

Rules:

1. Events happen in the order of `federation.simulation.agenda`. Work is done when it is ordered, whatever its simulated
   time: what decides is the time at which its answer would have come.
2. The next event is taken only when every action of the last one is done, so nothing overlaps but workers' own work.
3. Deadlines are simulated seconds. They pass while answers are awaited only if a time model or a script is given:
   without one nobody asked for stragglers, and the default times are merely reported.
4. A site that a script took away is ready again before the round it comes back in is drawn, or, while the experiment is
   paused for want of sites, next of all.
5. What a committed synchronous round leaves to be written down (its record, the run folder, whoever listens) is done
   when the tasks of the next round are with the workers, or when there are none; always before an answer of theirs is
   looked at. If the run is to stop by then, those tasks are as if they had never been given.
6. Between two synchronous rounds nothing is under way. Between two steps of an asynchronous method much is: `under_way`
   says what, and `resume` goes on with it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from federation.algorithms.server import count_sites
from federation.errors import PlanError, TaskError, UpdateRejectedError
from federation.names import RoundNumber
from federation.rounds import events
from federation.rounds.admission import NormWindow, check_norm
from federation.rounds.asynchronous import AsyncMachine
from federation.rounds.events import Phase
from federation.simulation.admission import Admission
from federation.simulation.agenda import Agenda
from federation.simulation.bench import EvaluateOrder, KeepOrder, TrainOrder
from federation.simulation.book import RoundBook, Update
from federation.simulation.roles import NoSpans
from federation.simulation.under_way import Flight, UnderWay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from federation.names import Attempt, SiteName
    from federation.plan import ExperimentSpec
    from federation.rounds.history import RoundRecord
    from federation.simulation.bench import EvaluateAnswer, Failure, TrainAnswer
    from federation.simulation.executors import Executor
    from federation.simulation.models import Models
    from federation.simulation.roles import Machine, Spans, Tampering
    from federation.simulation.script import Fate, Script
    from federation.simulation.times import TimeModel
    from federation.tensors.buffers import Array


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
        self.failures: list[tuple[RoundNumber, SiteName, Failure]] = []
        self._spec = spec
        self._machine = machine
        self._sites = sites
        self._models = models
        self._executor = executor
        self._times = times
        self._script = script
        self._on_commit = on_commit
        self._is_stopping = is_stopping
        self._spans = profile or NoSpans()
        self._tampering = tampering
        self._admission = Admission(spec)
        self._actions: deque[events.Action] = deque()
        self._leaving: dict[SiteName, int] = {}
        self._updates: dict[SiteName, Update] = {}
        self._combined: dict[SiteName, Update] = {}
        self._free = list(range(executor.arena.layout.slots - 1, -1, -1))
        self._round_began = 0.0
        self._finish: events.Finish | None = None
        self._unwritten: Callable[[], None] | None = None

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
                self.agenda.note(-math.inf, site, events.SiteReady(site))  # before anything that was under way
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

    # --- what is under way

    def under_way(self) -> UnderWay:
        """Return what goes on beyond the round that is being committed; to be asked while it is."""
        machine = self._machine
        if not isinstance(machine, AsyncMachine):
            return UnderWay()
        training = machine.training
        rows = self.agenda.of(training)
        coming = {site: (at, event) for at, site, _, event in rows if not isinstance(event, events.TaskOverdue)}
        overdue_at = {
            site: at
            for at, site, _, event in rows
            if isinstance(event, events.TaskOverdue) and (event.round, event.attempt) == machine.task_of(site)
        }
        flights = [self._flight(site, machine.task_of(site), *coming[site]) for site in training]
        flights += [self._flight(site, machine.task_of(site), None, None) for site in machine.waiting]
        needed = {flight.round for flight in flights if flight.payloads}
        versions = {number: model for number, model in self._models.versions.items() if number in needed}
        flights = [
            replace(flight, is_overdue=flight.site in machine.overdue, overdue_at=overdue_at.get(flight.site))
            for flight in flights
        ]
        return UnderWay(flights=tuple(flights), versions=versions)

    def _flight(
        self, site: SiteName, task: tuple[RoundNumber, Attempt], at: float | None, event: events.Event | None
    ) -> Flight:
        flight = Flight(site=site, round=task[0], attempt=task[1], at=at, event=event, back=self._leaving.get(site, 0))
        update = self._updates.get(site)
        if update is None:
            return flight
        sizes = update.trained.payload_bytes
        return replace(
            flight,
            trained=update.trained,
            norm=update.norm,
            has_pending=update.has_pending,
            payloads={
                name: bytes(payload.bytes())
                for name, payload in self._executor.arena.payloads(update.slot, sizes).items()
            },
        )

    def resume(self, under_way: UnderWay) -> None:
        """Go on with what an earlier run left; before `run`, with a machine that knows of it."""
        self._models.versions.update(under_way.versions)
        for flight in under_way.flights:
            site = flight.site
            if flight.back:
                self._leaving[site] = flight.back
            if flight.at is not None and flight.event is not None:
                self.agenda.resume_end(flight.at, site, flight.event)
            if flight.overdue_at is not None:
                self.agenda.note(flight.overdue_at, site, events.TaskOverdue(site, flight.round, flight.attempt))
            if flight.trained is None:
                continue
            slot = self._free.pop()
            for name, data in flight.payloads.items():
                self._executor.arena.update(slot, name)[: len(data)] = data
            self._updates[site] = Update(
                site, flight.round, flight.attempt, slot, flight.trained, flight.norm, flight.has_pending
            )

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
            back = self._leaving.pop(site, None)
            if back is None:
                return None
            self.absent[site] = back
        elif isinstance(event, events.SiteReady | events.TaskOverdue):
            return event
        elif not self.agenda.means_something(site, number):
            return None
        elif isinstance(event, events.UpdateAdmitted) and site in self._updates:
            try:
                check_norm(self._updates[site].norm, self._spec.plan, self.norms)
            except UpdateRejectedError as error:
                return events.UpdateRefused(site, str(error), error.norm)
        return event

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
            return self._train(action)
        elif isinstance(action, events.AskEvaluate):
            self._evaluate(action)
        elif isinstance(action, events.Combine):
            self._combine(action)
        elif isinstance(action, events.Commit):
            return self._commit(action)
        elif isinstance(action, events.SendVerdicts):
            self._settle(action)
        elif isinstance(action, events.RecordMiss):
            self._actions.extend(self._machine.step(events.MissRecorded()))
        elif isinstance(action, events.Finish):
            self._finish = action
        else:
            raise RuntimeError(f"nobody releases sites in a simulation, but the machine says {action}")
        return False

    def _train(self, action: events.AskTrain) -> bool:
        fates: dict[SiteName, Fate] = {}
        downs: dict[SiteName, int] = {}
        orders = []
        self._models.keep_version(action.round)
        for site in action.sites:
            fates[site] = self._script.fate(seed=self._spec.plan.seed, round_number=action.round, site=site)
            if not fates[site].end:
                orders.append(
                    TrainOrder(
                        site,
                        action.round,
                        action.attempt,
                        self._models.generation,
                        self._free.pop(),
                        self._models.has_optimizer,
                    )
                )
        # Longest first, so that workers finish together.
        orders.sort(key=lambda order: -self._sites[order.site])
        slots = {order.site: order.slot for order in orders}
        with self._spans.span("train"):
            answers: Iterable[TrainAnswer] = self._executor.train(orders)
            if self._write_down():
                return True
            for site, fate in fates.items():
                downs[site] = self.book.send(site, self._models.sent, self._models.sent_step)
                if fate.end:
                    self._end_of(site, fate, downs[site], action)
            self._executor.foresee(self._machine.foresee(), RoundNumber(action.round + 1))
            if self._tampering is not None:
                answers = self._tampered(self._tampering, action, list(answers), slots)
            for answer in answers:
                self._take(answer, action, slots[answer.site], fates[answer.site], downs[answer.site])
        return False

    def _tampered(
        self, tampering: Tampering, action: events.AskTrain, answers: list[TrainAnswer], slots: Mapping[SiteName, int]
    ) -> Iterable[TrainAnswer]:
        updates = [
            Update(answer.site, action.round, action.attempt, slots[answer.site], answer.trained, 0.0, False)
            for answer in sorted(answers, key=lambda row: row.site)
            if answer.trained is not None
        ]
        total = count_sites(self._models.total, len(self._machine.connected), self._spec.plan)

        def rule(deltas: Mapping[SiteName, Array]) -> Array:
            return self._models.outcome(action.round, updates, deltas, total)

        return tampering.tamper(action.round, answers, slots, rule)

    def _end_of(self, site: SiteName, fate: Fate, down: int, action: events.AskTrain) -> None:
        """What a script says instead of an answer; it shows once the site would have begun."""
        at = self.agenda.clock + self._times.evaluation_s(bytes_down=down) + fate.delay_s
        if fate.end == "lose":
            self._leaving[site] = fate.back
            self.book.held.pop(site, None)
            self.agenda.note_loss(at, site, events.SiteLost(site, "lost by the script"), action)
        else:
            self.agenda.note_end(at, site, events.SiteFailed(site, "failed by the script"), action)

    def _take(self, answer: TrainAnswer, action: events.AskTrain, slot: int, fate: Fate, down: int) -> None:
        site, trained = answer.site, answer.trained
        if trained is None:
            assert answer.failure is not None  # noqa: S101 - an answer is one or the other
            self._free.append(slot)
            self._fail(action.round, site, answer.failure)
            at = self.agenda.clock + self._times.evaluation_s(bytes_down=down) + fate.delay_s
            self.agenda.note_end(at, site, events.SiteFailed(site, answer.failure.error_class), action)
            return
        at = self.agenda.clock + fate.delay_s
        at += self._times.training_s(
            site=site,
            seed=self._spec.plan.seed,
            bytes_down=down,
            bytes_up=sum(trained.payload_bytes.values()),
            oracle_calls=trained.oracle_calls,
        )
        event: events.Event = events.UpdateAdmitted(site, asked_round=action.round)
        norm = 0.0
        try:
            # The site's worker looked already; where it found something wrong, or an update is another since, so do we.
            if answer.norm is not None and self._tampering is None:
                norm = answer.norm
            else:
                payloads = self._executor.arena.payloads(slot, trained.payload_bytes)
                norm = self._admission.check(payloads, trained.examples)
        except TaskError as error:
            if self._tampering is not None and site in self._tampering.sites:
                event = events.UpdateRefused(site, error.traceback)
            else:
                event = events.SiteFailed(site, error.error_class)
        except UpdateRejectedError as error:
            event = events.UpdateRefused(site, str(error), error.norm)
        if isinstance(event, events.SiteFailed):
            self._free.append(slot)
        else:
            self._updates[site] = Update(site, action.round, action.attempt, slot, trained, norm, answer.has_pending)
        self.agenda.note_end(at, site, event, action)

    def _fail(self, round_number: RoundNumber, site: SiteName, failure: Failure) -> None:
        self.failures.append((round_number, site, failure))

    def _evaluate(self, action: events.AskEvaluate) -> None:
        sent, step = self._models.candidate_sent, self._models.candidate_step
        downs = {site: self.book.send(site, sent, step) for site in action.sites}
        at = {site: self.agenda.clock + self._times.evaluation_s(bytes_down=down) for site, down in downs.items()}
        generation = self._models.next_generation
        orders = [EvaluateOrder(site, action.round, generation) for site in action.sites]
        with self._spans.span("evaluate"):
            answers: Iterable[EvaluateAnswer] = self._executor.evaluate(orders)
            for answer in answers:
                event: events.Event
                if answer.worked is not None:
                    worked = answer.worked
                    event = events.SiteEvaluated(answer.site, worked.examples, worked.metrics)
                else:
                    assert answer.failure is not None  # noqa: S101 - an answer is one or the other
                    self._fail(action.round, answer.site, answer.failure)
                    event = events.SiteFailed(answer.site, answer.failure.error_class)
                self.agenda.note_evaluation(at[answer.site], answer.site, event)

    def _combine(self, action: events.Combine) -> None:
        self.agenda.pass_time(self._times.server_s)
        self._combined = {site: self._updates[site] for site in action.sites}
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
            self._settle_counted()
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

    def _settle_counted(self) -> None:
        """Promote the state of sites that counted before the round is recorded: a checkpoint has both or neither."""
        self._keep([update for update in self._combined.values()], counted=True)

    def _settle(self, action: events.SendVerdicts) -> None:
        """Drop what did not count; what did was promoted with the commit. Their slots are free again."""
        updates = [self._updates.pop(site) for site in action.reasons if site in self._updates]
        self._keep([row for row in updates if action.reasons[row.site]], counted=False)
        self._free.extend(row.slot for row in updates)
        self._models.forget_versions({row.round for row in self._updates.values()})

    def _keep(self, updates: Sequence[Update], *, counted: bool) -> None:
        orders = [KeepOrder(row.site, row.round, row.attempt, counted) for row in updates if row.has_pending]
        if orders:
            self._executor.keep(orders)
