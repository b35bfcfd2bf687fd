"""The work of simulated sites in one process: one resident model, and each site's turn with it.

A bench is what a worker is made of, in this process, in a child or in an actor. It answers orders and never raises for
what a task did: a failure is an answer, as it is over the wire.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from federation.data.local import LocalData
from federation.errors import TaskError, UpdateRejectedError
from federation.simulation.admission import Admission
from federation.simulation.memory import Arena, MemoryExchange
from federation.training.state import StateStore
from federation.training.work import Resident, SiteWork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from federation.data.shard import Shard
    from federation.names import Attempt, RoundNumber, SiteName
    from federation.plan import ExperimentSpec
    from federation.training.experiment import Experiment
    from federation.training.work import Trained, Worked

FORESEEN = 64
"""Sites for which random streams are made ahead: enough that more would not be faster, and nothing beside a model."""


class TrainOrder(NamedTuple):
    """One site's training task: the generation it starts from, and the slot its update goes to."""

    site: SiteName
    round: RoundNumber
    attempt: Attempt
    generation: int
    slot: int
    has_optimizer: bool = False


class EvaluateOrder(NamedTuple):
    """One site's evaluation of the model of a generation."""

    site: SiteName
    round: RoundNumber
    generation: int


class KeepOrder(NamedTuple):
    """A verdict for one site: promote or drop what an attempt left."""

    site: SiteName
    round: RoundNumber
    attempt: Attempt
    counted: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a site could not do its task: class and text of what was raised, and where."""

    error_class: str
    text: str
    traceback: str


class TrainAnswer(NamedTuple):
    """The answer to a `TrainOrder`.

    Attributes:
        norm: of the change, if the update as the site wrote it passes the checks of `federation.simulation.admission`.
    """

    site: SiteName
    trained: Trained | None = None
    failure: Failure | None = None
    has_pending: bool = False
    norm: float | None = None


class EvaluateAnswer(NamedTuple):
    """The answer to an `EvaluateOrder`."""

    site: SiteName
    worked: Worked | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """What every worker of a simulation starts from.

    Attributes:
        experiment: as its author wrote it.
        spec: what runs.
        base: flat buffer of the LOCAL tensors as submitted; None if there are none.
        shards: data of each site.
        state: folder in which sites keep state; None: in memory.
        is_shared: others than a bench may serve a site or settle what it keeps, so it is read anew each time.
        device: where the task was told to compute; None: where it says itself.
    """

    experiment: Experiment
    spec: ExperimentSpec
    base: bytes | None
    shards: Mapping[SiteName, Shard]
    state: Path | None
    is_shared: bool = False
    device: str | None = None


class Bench:
    """A worker's own part: the resident model and the sites it has met.

    Args:
        premises: what to work on.
        arena: where models come from and updates go.
        stores: what sites keep, filled as they are met, where several benches of a process serve them in turn. None: it
            is this bench's, or read anew each time if the premises say that others may serve a site.

    Raises:
        PlanError: the experiment does not make the model of the spec.
    """

    def __init__(self, premises: Premises, arena: Arena, stores: dict[SiteName, StateStore] | None = None) -> None:
        self._premises = premises
        self._arena = arena
        self._stores = stores
        self._admission = Admission(premises.spec)
        self._resident = Resident(experiment=premises.experiment, spec=premises.spec, base=premises.base)
        self._data: dict[SiteName, LocalData] = {}
        self._works: dict[SiteName, SiteWork] = {}

    def train_all(self, orders: Sequence[TrainOrder]) -> list[TrainAnswer]:
        """Train several sites' rounds, one after another; the same as each by itself, and faster where sites are small.

        What is done in a row for all of them finds its code in the processor's caches, from which training drives it.
        """
        answers: list[TrainAnswer] = []
        for start in range(0, len(orders), FORESEEN):
            parcel = orders[start : start + FORESEEN]
            answers += map(self._checked, parcel, self._train_parcel(parcel))
        return answers

    def work(self, orders: Sequence[TrainOrder | EvaluateOrder]) -> Sequence[TrainAnswer | EvaluateAnswer]:
        """Do a parcel of orders, all of one kind; `finish` looks at the answers before anybody else does."""
        evaluations = [order for order in orders if isinstance(order, EvaluateOrder)]
        return list(map(self.evaluate, evaluations)) or self._train_parcel(
            [order for order in orders if isinstance(order, TrainOrder)]
        )

    def finish(
        self, orders: Sequence[TrainOrder | EvaluateOrder], answers: Sequence[TrainAnswer | EvaluateAnswer]
    ) -> list[TrainAnswer | EvaluateAnswer]:
        """Check the updates behind answers of `work`; several parcels at once, which train faster in a row."""
        return [
            self._checked(order, answer)
            if isinstance(order, TrainOrder) and isinstance(answer, TrainAnswer)
            else answer
            for order, answer in zip(orders, answers, strict=True)
        ]

    def train(self, order: TrainOrder) -> TrainAnswer:
        """Train one site's round."""
        return self.train_all([order])[0]

    def foresee(self, sites: Sequence[SiteName], number: RoundNumber, is_needed: Callable[[], bool]) -> None:
        """Prepare for training these sites in a round, until one is needed otherwise; nobody need be asked for it then.

        Sites whose state others may have settled since are left alone.
        """
        if self._premises.is_shared and self._resident.keeps_state:
            return
        for site in sites[:FORESEEN]:
            if is_needed():
                return
            self._work(site).foresee(number)

    def _train_parcel(self, parcel: Sequence[TrainOrder]) -> list[TrainAnswer]:
        works = [self._prepared(order) for order in parcel]
        return list(map(self._train, parcel, works))

    def _prepared(self, order: TrainOrder) -> SiteWork | Failure:
        try:
            work = self._work(order.site)
            work.foresee(order.round)
        except Exception as error:
            return _failure(error)
        return work

    def _train(self, order: TrainOrder, work: SiteWork | Failure) -> TrainAnswer:
        if isinstance(work, Failure):
            return TrainAnswer(order.site, failure=work)
        exchange = MemoryExchange(self._arena, order.generation, order.slot, has_optimizer=order.has_optimizer)
        try:
            trained = work.train(order.round, order.attempt, exchange, exchange)
        except Exception as error:
            return TrainAnswer(order.site, failure=_failure(error))
        return TrainAnswer(order.site, trained, has_pending=work.has_pending)

    def _checked(self, order: TrainOrder, answer: TrainAnswer) -> TrainAnswer:
        if answer.trained is None:
            return answer
        payloads = self._arena.payloads(order.slot, answer.trained.payload_bytes)
        try:
            return answer._replace(norm=self._admission.check(payloads, answer.trained.examples))
        except (TaskError, UpdateRejectedError):
            return answer  # who admits it looks again, and says what is wrong

    def evaluate(self, order: EvaluateOrder) -> EvaluateAnswer:
        """Evaluate the model of a round at one site."""
        try:
            exchange = MemoryExchange(self._arena, order.generation)
            worked = self._work(order.site).evaluate(order.round, exchange)
        except Exception as error:
            return EvaluateAnswer(order.site, failure=_failure(error))
        return EvaluateAnswer(order.site, worked)

    def keep(self, order: KeepOrder) -> None:
        """Promote or drop what an attempt left.

        Raises:
            StorageError: it cannot be moved.
        """
        self._work(order.site).keep(order.round, order.attempt, counted=order.counted)

    def written(self) -> frozenset[int]:
        """Return the addresses of the tensors that a task writes."""
        arrays = self._resident.arrays()
        names = [*(spec.name for spec in self._premises.spec.schema_.federated), *self._resident.changing]
        return frozenset(arrays[name].ctypes.data for name in names if arrays[name].nbytes)

    def _work(self, site: SiteName) -> SiteWork:
        found = self._works.get(site)
        if found is not None:
            return found
        data = self._data.get(site)
        if data is None:
            data = self._data[site] = LocalData(self._premises.shards[site])
        work = SiteWork(self._resident, site=site, data=data, state=self._store(site))
        if not (self._premises.is_shared and self._resident.keeps_state):
            self._works[site] = work
        return work

    def _store(self, site: SiteName) -> StateStore:
        found = None if self._stores is None else self._stores.get(site)
        if found is not None:
            return found
        folder = self._premises.state
        store = StateStore(None if folder is None else folder / site, durable=False)
        if self._stores is not None:
            self._stores[site] = store
        return store


def settle(state: Path, order: KeepOrder) -> None:
    """Promote or drop what an attempt left in files, from a process that has no bench.

    Raises:
        StorageError: it cannot be moved.
    """
    StateStore(state / order.site, durable=False).settle(order.round, order.attempt, counted=order.counted)


def _failure(error: Exception) -> Failure:
    return Failure(type(error).__name__, str(error), "".join(traceback.format_exception(error)))
