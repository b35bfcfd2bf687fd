"""One site's part of a round: load the model, run the task, write what changed.

Rules, in order:

1. What is trained is the model of the signed spec. If the author's code makes another here (another library version,
   a size read from the data), nothing runs and the error names the first tensor that differs.
2. A round starts from the global model and the site's kept state, whatever ran before it: a failed or repeated attempt
   leaves no trace, and the same (seed, round, site) gives the same update.
3. Metrics are finite numbers under names the spec fixes. The class name of an error is all that leaves a silo by
   default, so it is telling.
4. Evaluating the model of a round uses the local tensors that round left here, although its verdict is still to come:
   it is the model this site will have if the round commits.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.errors import PlanError
from federation.plan import ExperimentSpec, check_metrics
from federation.training.context import RoundContext
from federation.training.experiment import Experiment, schema_of
from federation.training.files import read_into, write_change, write_from
from federation.training.models import Kind
from federation.training.seeding import seed_globals
from federation.training.state import LocalState, StateStore

if TYPE_CHECKING:
    from pathlib import Path

    from federation.data.local import LocalData
    from federation.names import SiteName
    from federation.tensors import TensorSchema


class MetricsError(PlanError):
    """The task reported something that is no metric: a name the spec does not fix, or not a number."""


class NonFiniteMetricError(MetricsError):
    """A metric is NaN or infinite: training diverged, or the data holds what it should not."""


class WrongModelError(PlanError):
    """The author's code makes another model here than at home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What training or evaluating gave: `examples` used, `steps` taken, `metrics`, and `seconds` the task took."""

    examples: int
    steps: int
    metrics: dict[str, float]
    seconds: float


class LocalWork:
    """An experiment at one site, loaded once and warm for all rounds.

    Args:
        experiment: as loaded from the bundle.
        spec: the signed spec; its plan holds, whatever `experiment` says here.
        site: name of this site.
        data: the site's data.
        workspace: folder for state that outlives a round.
        base: flat buffer of the LOCAL tensors as submitted; None if there are none.

    Raises:
        PlanError: the experiment does not make the model of the spec.
        StorageError: a file cannot be read.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        spec: ExperimentSpec,
        site: SiteName,
        data: LocalData,
        workspace: Path,
        base: Path | None,
    ) -> None:
        self._task = experiment.task
        self._spec = spec
        self._site = site
        self._data = data
        self._schema = spec.schema_
        self._adapter = experiment.make_model(spec.plan.seed)
        _check_same(schema_of(self._adapter, spec.plan), self._schema)
        _set_up_torch(spec.plan.threads)
        local = self._schema.local
        if local:
            if base is None:
                raise PlanError(f"the model has {len(local)} local tensors, but their initial values did not come")
            read_into(base, local, self._adapter.arrays())
        kinds = self._adapter.kinds
        self._changing = [spec.name for spec in local if kinds[spec.name] is not Kind.FROZEN]
        self._state = StateStore(workspace)
        arrays = self._adapter.arrays()
        self._submitted = {name: arrays[name].copy() for name in self._changing}

    def train(
        self,
        *,
        number: int,
        model: Path,
        delta: Path,
        buffers: Path | None,
        attempt: int = 1,
        optimizer_in: Path | None = None,
        optimizer_out: Path | None = None,
    ) -> Worked:
        """Train one round and write the update.

        Args:
            number: round, from 1.
            model: flat buffer of the federated tensors, x.
            delta: receives the change of the parameters, w - x.
            buffers: receives the values of the buffers; None if there are none.
            attempt: which asking of this round; it changes nothing but whose verdict settles the local state.
            optimizer_in: flat buffer of aggregated optimizer state; None: start without.
            optimizer_out: receives optimizer state; None unless the plan aggregates it.

        Raises:
            PlanError: the task broke a rule; subclasses above say which.
            StorageError: a file cannot be read or written.
            Exception: whatever the author's code raises.
        """
        plan = self._spec.plan
        self._state.drop_pending()
        self._load(model, self._state.kept)
        context = RoundContext(
            number=number,
            site=self._site,
            seed=plan.seed,
            epochs=plan.epochs,
            steps=plan.local_steps,
            learning_rate=plan.learning_rate,
            threads=plan.threads,
            optimizer_state=self._optimizer_state(optimizer_in),
        )
        seed_globals(context.derive_seed("globals"))
        self._data.start_count()
        started = time.perf_counter()
        metrics = self._checked(self._task.train(self._adapter.model, self._data, context), "train")
        seconds = time.perf_counter() - started
        arrays = self._adapter.arrays()
        self._hold(attempt, arrays, context)
        write_change(delta, model, self._schema, arrays)
        if self._schema.buffers:
            if buffers is None:
                raise ValueError("the model has buffers; name a file for them")
            write_from(buffers, self._schema.buffers, arrays)
        if optimizer_out is not None:
            self._write_optimizer(optimizer_out, context)
        return Worked(
            examples=self._data.examples_used, steps=self._data.batches_drawn, metrics=metrics, seconds=seconds
        )

    def evaluate(self, *, number: int, model: Path) -> Worked:
        """Evaluate the model of a round on the site's validation data.

        Raises:
            PlanError: the task broke a rule.
            StorageError: the model file cannot be read.
            Exception: whatever the author's code raises.
        """
        self._load(model, self._state.of_round(number))
        seed_globals(self._spec.plan.seed)
        started = time.perf_counter()
        metrics = self._checked(self._task.evaluate(self._adapter.model, self._data), "evaluate")
        best = self._spec.plan.best.metric
        if self._spec.plan.evaluate_every and best not in metrics:
            raise MetricsError(f"evaluate reported {sorted(metrics)}, but the plan chooses the best model by {best!r}")
        return Worked(
            examples=self._data.validation_examples,
            steps=0,
            metrics=metrics,
            seconds=time.perf_counter() - started,
        )

    @property
    def has_pending(self) -> bool:
        """Whether training left state that `keep` would promote or drop."""
        return self._state.has_pending

    def keep(self, number: int, attempt: int = 1, *, counted: bool) -> None:
        """Promote or drop the state an attempt at a round left.

        Raises:
            StorageError: it cannot be moved.
        """
        self._state.settle(number, attempt, counted=counted)

    def _load(self, model: Path, state: LocalState) -> None:
        arrays = self._adapter.arrays()
        read_into(model, self._schema.federated, arrays)
        for name in self._changing:
            arrays[name][...] = state.tensors.get(name, self._submitted[name])

    def _optimizer_state(self, file: Path | None) -> dict[str, Any]:
        if self._spec.plan.optimizer_state == "keep":
            return {name: value.copy() for name, value in self._state.kept.optimizer.items()}
        if file is None:
            return {}
        schema = self._spec.optimizer_schema
        state = {spec.name: np.empty(spec.shape, spec.dtype.numpy) for spec in schema}
        read_into(file, schema, state)
        return state

    def _hold(self, attempt: int, arrays: Mapping[str, Any], context: RoundContext) -> None:
        kept = self._spec.plan.optimizer_state == "keep"
        state = LocalState(
            tensors={name: arrays[name].copy() for name in self._changing},
            optimizer=dict(context.optimizer_state) if kept else {},
        )
        self._state.set_pending(context.number, attempt, state)

    def _write_optimizer(self, file: Path, context: RoundContext) -> None:
        schema = self._spec.optimizer_schema
        for spec in schema:
            value = context.optimizer_state.get(spec.name)
            if value is None or value.dtype != spec.dtype.numpy or value.shape != spec.shape:
                raise PlanError(f"the task left no optimizer state {spec.name!r} of {spec.dtype.value}{spec.shape}")
        write_from(file, schema, context.optimizer_state)

    def _checked(self, metrics: object, method: str) -> dict[str, float]:
        if not isinstance(metrics, Mapping):
            raise MetricsError(f"{method} returned a {type(metrics).__name__}; expected a dictionary of metrics")
        try:
            numbers = {str(name): float(value) for name, value in metrics.items()}
        except (TypeError, ValueError) as error:
            raise MetricsError(f"{method} returned a metric that is not a number: {error}") from error
        wrong = [name for name, value in numbers.items() if value != value or value in (float("inf"), -float("inf"))]
        if wrong:
            raise NonFiniteMetricError(f"{method} returned {wrong[0]} = {numbers[wrong[0]]}")
        try:
            return check_metrics(numbers, self._spec.metrics)
        except ValueError as error:
            raise MetricsError(f"{method}: {error}") from error


def _check_same(here: TensorSchema, signed: TensorSchema) -> None:
    if here.digest == signed.digest:
        return
    for spec in signed:
        if spec.name not in here:
            raise WrongModelError(f"the model made here lacks tensor {spec.name!r} of the signed one")
        got = here[spec.name]
        if got != spec:
            raise WrongModelError(
                f"tensor {spec.name!r} is {got.dtype.value}{list(got.shape)} ({got.role.value}) here, "
                f"{spec.dtype.value}{list(spec.shape)} ({spec.role.value}) in the signed model"
            )
    extra = sorted(spec.name for spec in here if spec.name not in signed)
    raise WrongModelError(f"the model made here has tensors {json.dumps(extra[:5])} that the signed one lacks")


def _set_up_torch(threads: int) -> None:
    if "torch" not in sys.modules:
        return
    import torch

    torch.set_num_threads(threads)
    # Warn rather than fail: some operations have no deterministic form, and a model may need one.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A guard for debugging that costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module property
