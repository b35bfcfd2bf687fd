"""Sites at work in a simulation: tasks are given, what comes of each is noted, updates lie in slots until settled.

Rules:

1. Work is done when it is ordered, whatever its simulated time: what decides is the time at which its answer would have
   come, which is noted in the agenda. A script's fate of a site shows instead of an answer.
2. An update is checked as the aggregator does; what is wrong with it shows when it would have come.
3. A slot is taken as its task is given, and free again when there is no update, or when it is settled.
4. What sites keep is promoted for updates that counted, and dropped for the others.
5. A site that is late ends what it has begun before it begins what it is asked next, as a trainer does.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from federation.algorithms.server import count_sites
from federation.errors import TaskError, UpdateRejectedError
from federation.names import RoundNumber
from federation.rounds import events
from federation.rounds.asynchronous import AsyncMachine
from federation.simulation.admission import Admission
from federation.simulation.bench import EvaluateOrder, KeepOrder, TrainOrder
from federation.simulation.book import RoundBook, Update
from federation.simulation.under_way import Flight, UnderWay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from federation.names import Attempt, SiteName
    from federation.plan import ExperimentSpec
    from federation.simulation.agenda import Agenda, Due, Row
    from federation.simulation.bench import EvaluateAnswer, Failure, TrainAnswer
    from federation.simulation.executors import Executor
    from federation.simulation.models import Models
    from federation.simulation.roles import Machine, Spans, Tampering
    from federation.simulation.script import Fate, Script
    from federation.simulation.times import TimeModel
    from federation.tensors.buffers import Array


class SiteWork:
    """What the sites of one simulation do.

    Args:
        spec: the experiment.
        machine: its round machine: who is connected, and, of an asynchronous method, who has which task.
        sites: every site there is, with its training examples.
        models: models and server state.
        executor: who works for the sites.
        times: what takes how long.
        script: what goes wrong.
        agenda: where what comes of a task is noted.
        book: where what sites are sent is counted.
        spans: where times are noted.
        tampering: writes the updates of hostile sites; None: all are honest.

    Attributes:
        updates: those that are not settled, by site.
        leaving: sites that will be lost, and the round before which each is ready again.
        failures: what failed at sites, in the order of their answers.
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
        agenda: Agenda,
        book: RoundBook,
        spans: Spans,
        tampering: Tampering | None,
    ) -> None:
        self.updates: dict[SiteName, Update] = {}
        self.leaving: dict[SiteName, int] = {}
        self.failures: list[tuple[RoundNumber, SiteName, Failure]] = []
        self._spec = spec
        self._machine = machine
        self._sites = sites
        self._models = models
        self._executor = executor
        self._times = times
        self._script = script
        self._agenda = agenda
        self._book = book
        self._spans = spans
        self._tampering = tampering
        self._admission = Admission(spec)
        self._free = list(range(executor.arena.layout.slots - 1, -1, -1))

    def train(self, action: events.AskTrain, *, when_given: Callable[[], bool]) -> bool:
        """Have sites train, and note what comes of it.

        Args:
            action: who, in which round and attempt.
            when_given: called when the tasks are with the workers, before an answer is looked at; if it returns True
                they are as if they had never been given.

        Returns:
            What `when_given` returned.
        """
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
            if when_given():
                return True
            for site, fate in fates.items():
                downs[site] = self._book.send(site, self._models.sent, self._models.sent_step)
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
        at = self._agenda.free_at(site) + self._times.evaluation_s(bytes_down=down) + fate.delay_s
        if fate.end == "lose":
            self.leaving[site] = fate.back
            self._book.held.pop(site, None)
            self._agenda.note_end(at, site, events.SiteLost(site, "lost by the script"), action)
        else:
            self._agenda.note_end(at, site, events.SiteFailed(site, "failed by the script"), action)

    def _take(self, answer: TrainAnswer, action: events.AskTrain, slot: int, fate: Fate, down: int) -> None:
        site, trained = answer.site, answer.trained
        if trained is None:
            assert answer.failure is not None  # noqa: S101 - an answer is one or the other
            self._free.append(slot)
            self._fail(action.round, site, answer.failure)
            at = self._agenda.free_at(site) + self._times.evaluation_s(bytes_down=down) + fate.delay_s
            self._agenda.note_end(at, site, events.SiteFailed(site, answer.failure.error_class), action)
            return
        at = self._agenda.free_at(site) + fate.delay_s
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
            self.updates[site] = Update(site, action.round, action.attempt, slot, trained, norm, answer.has_pending)
        self._agenda.note_end(at, site, event, action)

    def _fail(self, round_number: RoundNumber, site: SiteName, failure: Failure) -> None:
        self.failures.append((round_number, site, failure))

    def evaluate(self, action: events.AskEvaluate) -> None:
        """Have sites evaluate the candidate, and note what they say."""
        sent, step = self._models.candidate_sent, self._models.candidate_step
        downs = {site: self._book.send(site, sent, step) for site in action.sites}
        at = {
            site: self._agenda.free_at(site) + self._times.evaluation_s(bytes_down=down) for site, down in downs.items()
        }
        for site in action.sites:
            self._agenda.call_off(site)
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
                self._agenda.note_evaluation(at[answer.site], answer.site, event)

    def promote(self, updates: Sequence[Update]) -> None:
        """Promote what sites keep of updates that counted."""
        self._keep(updates, counted=True)

    def settle(self, action: events.SendVerdicts) -> None:
        """Drop what did not count; what did was promoted with the commit. Their slots are free again."""
        updates = [self.updates.pop(site) for site in action.reasons if site in self.updates]
        self._keep([row for row in updates if action.reasons[row.site]], counted=False)
        self._free.extend(row.slot for row in updates)
        self._models.forget_versions({row.round for row in self.updates.values()})

    def _keep(self, updates: Sequence[Update], *, counted: bool) -> None:
        orders = [KeepOrder(row.site, row.round, row.attempt, counted) for row in updates if row.has_pending]
        if orders:
            self._executor.keep(orders)

    def under_way(self) -> UnderWay:
        """Return what goes on beyond the round that is being committed; to be asked while it is."""
        machine = self._machine
        if not isinstance(machine, AsyncMachine):
            return UnderWay(flights=tuple(self._late(due, row) for due, row in self._agenda.at_work()))
        training = machine.training
        rows = self._agenda.of(training)
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

    def _late(self, due: Due, row: Row) -> Flight:
        at, site, _, event = row
        back = self.leaving.get(site, 0)
        begins = due.begins if due.begins > self._agenda.clock else None
        return Flight(site=site, round=due.task[0], attempt=due.task[1], at=at, event=event, back=back, begins=begins)

    def _flight(
        self, site: SiteName, task: tuple[RoundNumber, Attempt], at: float | None, event: events.Event | None
    ) -> Flight:
        flight = Flight(site=site, round=task[0], attempt=task[1], at=at, event=event, back=self.leaving.get(site, 0))
        update = self.updates.get(site)
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
                self.leaving[site] = flight.back
            if flight.at is not None and flight.event is not None:
                begins = -math.inf if flight.begins is None else flight.begins
                self._agenda.resume_end(flight.at, site, flight.event, (flight.round, flight.attempt), begins=begins)
            if flight.overdue_at is not None:
                self._agenda.note(flight.overdue_at, site, events.TaskOverdue(site, flight.round, flight.attempt))
            if flight.trained is None:
                continue
            slot = self._free.pop()
            for name, data in flight.payloads.items():
                self._executor.arena.update(slot, name)[: len(data)] = data
            self.updates[site] = Update(
                site, flight.round, flight.attempt, slot, flight.trained, flight.norm, flight.has_pending
            )
