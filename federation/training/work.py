"""One site's part of a round, on arrays: load, train, hand over what changed. Trainer and simulation share it.

Rules, in order:

1. A round starts from the global model and the site's kept state, whatever ran before it: a failed or repeated attempt
   leaves no trace, and the same (seed, round, site) gives the same update.
2. The order inside `SiteWork.train` decides bits and is fixed: drop what was pending, load the model and the local
   tensors, seed the global generators (unless it is known that nothing draws from them), start the count of examples;
   then the time of the task begins, and the algorithm's client half works; then the state it left is held, and what it
   did not send itself is written.
3. Evaluating the model of a round uses the local state that round left here, although its verdict is still to come:
   it is the state this site will have if the round commits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from federation.algorithms.client import ClientHalf
from federation.errors import PlanError
from federation.rounds.schedules import local_rate
from federation.runtime.resources import most_resident_bytes
from federation.training.client_round import SiteRound
from federation.training.context import RoundContext
from federation.training.exchange import BUFFERS, DELTA, OPTIMIZER, Inputs, Outputs
from federation.training.resident import Resident, WrongModelError
from federation.training.results import MetricsError, NonFiniteMetricError, Trained, Worked, checked_metrics
from federation.training.seeding import seed_globals
from federation.training.state import LocalState, StateStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.data.local import LocalData
    from federation.names import PayloadName, SiteName
    from federation.tensors.buffers import Array

__all__ = [
    "Inputs",
    "MetricsError",
    "NonFiniteMetricError",
    "Outputs",
    "Resident",
    "SiteWork",
    "Trained",
    "Worked",
    "WrongModelError",
]


class SiteWork:
    """One site's turn with a resident model. Cheap to make: a simulation has one for each of its sites.

    Args:
        resident: the experiment, loaded.
        site: name of the site.
        data: the site's data.
        state: what the site keeps between rounds.
    """

    def __init__(self, resident: Resident, *, site: SiteName, data: LocalData, state: StateStore) -> None:
        self._resident = resident
        self._site = site
        self._data = data
        self._state = state
        self._ahead: RoundContext | None = None

    def foresee(self, number: int) -> None:
        """Prepare what training a round needs beside its model; to be called for several sites before the first trains.

        It changes no result: what is done in a row for many is done faster.
        """
        if self._ahead is None or self._ahead.number != number:
            self._ahead = self._context(number)
            self._ahead.foresee()

    def train(self, number: int, attempt: int, inputs: Inputs, outputs: Outputs) -> Trained:
        """Train one round and write the update.

        Args:
            number: round, from 1.
            attempt: which asking of this round; it changes nothing but whose verdict settles the state.
            inputs: the model, and what the algorithm broadcasts.
            outputs: receives each payload of the update once.

        Raises:
            PlanError: the task broke a rule; subclasses say which.
            StorageError: a payload cannot be read or written.
            Exception: whatever the author's code raises.
        """
        resident, data = self._resident, self._data
        self._state.drop_pending()
        arrays = resident.load(inputs, self._state.kept)
        context, self._ahead = self._ahead, None
        if context is None or context.number != number:
            context = self._context(number)
        context.optimizer_state.update(self._optimizer_state(inputs))
        is_ours = resident.is_ours(data)
        if not is_ours:
            seed_globals(context.derive_seed("globals"))
        data.start_count()
        started = time.perf_counter()
        round: SiteRound | None = None
        if resident.is_plain:
            if not is_ours:
                resident.touched()
            reported = resident.task.train(resident.model, data, context)
            metrics = checked_metrics(reported, "train", resident.spec.metrics)
            # A task that draws no batches looks at everything, once at least.
            steps, oracle_calls = data.batches_drawn, data.examples_drawn or data.examples_used
        else:
            round = SiteRound(resident, context, data, arrays, self._state.kept, inputs, outputs)
            resident.client.work(round)
            metrics = checked_metrics(round.metrics, "train", resident.spec.metrics)
            steps, oracle_calls = round.steps, round.oracle_calls
        seconds = time.perf_counter() - started
        written = self._finish(attempt, context, round, outputs)
        return Trained(
            examples=data.examples_used,
            steps=steps,
            metrics=metrics,
            seconds=seconds,
            payload_bytes=written,
            oracle_calls=oracle_calls,
            peak_memory=most_resident_bytes(),
        )

    def evaluate(self, number: int, inputs: Inputs) -> Worked:
        """Evaluate the model of a round on the site's validation data.

        Raises:
            PlanError: the task broke a rule.
            StorageError: the model cannot be read.
            Exception: whatever the author's code raises.
        """
        resident, plan = self._resident, self._resident.spec.plan
        state = self._state.of_round(number)
        arrays = resident.load(inputs, state)
        seed_globals(plan.seed)
        started = time.perf_counter()
        if type(resident.client).evaluate is ClientHalf.evaluate:
            resident.touched()
            reported = resident.task.evaluate(resident.model, self._data)
        else:
            context = self._context(number)
            round = SiteRound(resident, context, self._data, arrays, state, inputs, None)
            resident.touched()
            reported = resident.client.evaluate(round)
        metrics = checked_metrics(reported, "evaluate", resident.spec.metrics)
        best = plan.best.metric
        if plan.evaluate_every and best not in metrics:
            raise MetricsError(f"evaluate reported {sorted(metrics)}, but the plan chooses the best model by {best!r}")
        seconds = time.perf_counter() - started
        return Worked(examples=self._data.validation_examples, steps=0, metrics=metrics, seconds=seconds)

    def keep(self, number: int, attempt: int, *, counted: bool) -> None:
        """Promote or drop the state an attempt at a round left.

        Raises:
            StorageError: it cannot be moved.
        """
        self._state.settle(number, attempt, counted=counted)

    @property
    def has_pending(self) -> bool:
        """Whether training left state that `keep` would promote or drop."""
        return self._state.has_pending

    def _context(self, number: int) -> RoundContext:
        plan = self._resident.spec.plan
        return RoundContext(
            number=number,
            site=self._site,
            seed=plan.seed,
            epochs=plan.epochs,
            steps=plan.local_steps,
            seconds=plan.local_seconds,
            learning_rate=local_rate(plan, number),
            estimator=plan.estimator,
            threads=plan.threads,
            federated=self._resident.federated,
        )

    def _optimizer_state(self, inputs: Inputs) -> dict[str, Array]:
        if self._resident.spec.plan.optimizer_state == "keep":
            return {name: value.copy() for name, value in self._state.kept.optimizer.items()}
        if not inputs.has(OPTIMIZER):
            return {}
        schema = self._resident.spec.optimizer_schema
        state = {spec.name: np.empty(spec.shape, spec.dtype.numpy) for spec in schema}
        inputs.read(OPTIMIZER, schema, state)
        return state

    def _finish(
        self, attempt: int, context: RoundContext, round: SiteRound | None, outputs: Outputs
    ) -> dict[PayloadName, int]:
        """Hold the state the round left, and write what it has not sent itself."""
        resident = self._resident
        arrays = resident.arrays()
        self._hold(attempt, context, arrays, {} if round is None else round.state_left())
        written = {} if round is None else round.written
        if DELTA not in written:
            if round is not None:
                raise PlanError(
                    f"algorithm {resident.spec.plan.algorithm!r} sent no change in round {context.number}; "
                    "its client half must call round.send_change() or round.send('delta', ...)"
                )
            written[DELTA] = outputs.write_change(DELTA, resident.schema.parameters, arrays)
        if resident.schema.buffers and BUFFERS not in written:
            written[BUFFERS] = outputs.write(BUFFERS, resident.schema.buffers, arrays)
        if resident.spec.optimizer_tensors:
            written[OPTIMIZER] = self._write_optimizer(context, outputs)
        if round is not None:
            round.write_scalars()
        return {name: written[name] for name in resident.plans}

    def _hold(self, attempt: int, context: RoundContext, arrays: Mapping[str, Array], method: dict[str, Array]) -> None:
        kept = self._resident.spec.plan.optimizer_state == "keep"
        if not (kept or method or self._resident.changing):
            return
        state = LocalState(
            tensors={name: arrays[name].copy() for name in self._resident.changing},
            optimizer=dict(context.optimizer_state) if kept else {},
            method=method,
        )
        self._state.set_pending(context.number, attempt, state)

    def _write_optimizer(self, context: RoundContext, outputs: Outputs) -> int:
        schema = self._resident.spec.optimizer_schema
        for spec in schema:
            value = context.optimizer_state.get(spec.name)
            if value is None or value.dtype != spec.dtype.numpy or value.shape != spec.shape:
                raise PlanError(f"the task left no optimizer state {spec.name!r} of {spec.dtype.value}{spec.shape}")
        return outputs.write(OPTIMIZER, schema, context.optimizer_state)
