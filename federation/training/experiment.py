"""An experiment: model, task and plan, as its author writes them in ``experiment.py``.

Rules, in order:

1. The author's code runs at home and in trainers, never on a server. At home `Experiment.build` turns it into data: an
   `ExperimentSpec` and the initial values of every tensor.
2. The role of a tensor follows from the model and the plan. A parameter that needs gradients is PARAMETER where the
   plan federates it, else LOCAL (it trains and stays at its site). A buffer (batch-norm statistics, counters) is BUFFER
   where the plan federates it, else LOCAL. A frozen parameter (``requires_grad`` False) never changes, so it needs no
   round trip: it is LOCAL whatever the plan says, and is delivered once.
3. The initial model is made under the plan's seed: equal experiments, equal models.
4. What the algorithm adds to what travels, and to the names of metrics, goes into the signed spec as data: no server
   and no collaborator runs its client half.

This module imports without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from pydantic import ValidationError

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.registry import check, check_own, load_algorithm
from federation.errors import InvalidNameError, PlanError
from federation.names import check_name
from federation.plan import ExperimentSpec, Plan, tensor_rows
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec
from federation.training.models import Kind, ModelAdapter, adapt
from federation.training.seeding import build_seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federation.data.local import LocalData
    from federation.data.shard import Shard
    from federation.tensors.buffers import Array
    from federation.training.context import RoundContext

Model: TypeAlias = Any
"""A ``torch.nn.Module``, or a dictionary from names to NumPy arrays."""


@runtime_checkable
class Task(Protocol):
    """What a site does with a model and its data. Any object with these two methods is a task.

    It may also have ``metric_names`` (tuple of str: what it reports), and, for plans that aggregate optimizer state,
    ``optimizer_tensors(model, learning_rate) -> dict[str, array]``. Algorithms that correct gradients need
    ``problem(model, data, round)``, which gives a `federation.training.problems.SiteProblem`. Where it has
    ``optimizer_choice`` (`federation.algorithms.OptimizerChoice`), algorithms refuse optimizers they do not hold for.
    """

    def train(self, model: Model, data: LocalData, round: RoundContext) -> Mapping[str, float]:
        """Train `model` in place on the site's data and return metrics."""
        ...

    def evaluate(self, model: Model, data: LocalData) -> Mapping[str, float]:
        """Return metrics of `model` on the site's validation data, unweighted: the server weighs sites by examples."""
        ...


class Built(NamedTuple):
    """An experiment as data: `spec`, and `arrays`, the initial value of each tensor of ``spec.schema_``, by name."""

    spec: ExperimentSpec
    arrays: dict[str, Array]


class Experiment:
    """Model, task and plan under a name.

    Args:
        name: lower-case letters, digits and hyphens.
        model: callable that gives an ``nn.Module`` or a dictionary of NumPy arrays; or such a dictionary. Floats are
            trained; integers and bools of a dictionary are buffers.
        task: `SupervisedTask`, or any `Task`.
        shard: kind of shard a site must offer.
        plan: what happens, round by round.
        project: project it belongs to.
        sample_shape: shape of one sample the model takes; sites with another are told so. None: not checked.
        target_shape: shape of one target. None: not checked.
        metrics: every name `task` may report. None: what the task says, or ``loss`` alone.
        algorithm: a method object, of ours or your own; its name and options become the plan's. None: the plan's.
        data: the whole dataset, for simulations that divide it among sites: a callable that gives a shard, or
            ``"module:Class"``. No server and no site looks at it.

    Raises:
        PlanError: an argument is not what it should be; the text says which.
    """

    def __init__(
        self,
        *,
        name: str,
        model: Callable[[], Model] | dict[str, Array],
        task: Task,
        shard: str,
        plan: Plan | None = None,
        project: str = "default",
        sample_shape: Sequence[int] | None = None,
        target_shape: Sequence[int] | None = None,
        metrics: Sequence[str] | None = None,
        algorithm: Algorithm | None = None,
        data: Callable[[], Shard] | str | None = None,
    ) -> None:
        try:
            self.name = check_name(name, "experiment name")
            self.shard = check_name(shard, "shard kind")
            self.project = check_name(project, "project")
        except InvalidNameError as error:
            raise PlanError(str(error)) from error
        # A module can be called too, on samples: what is meant is its maker. Torch need not be here to know one.
        is_module = hasattr(model, "state_dict") and not isinstance(model, type)
        if is_module or (not callable(model) and not isinstance(model, dict)):
            raise PlanError(
                f"model is a {type(model).__name__}; give a callable that makes it, such as its class or a lambda"
            )
        for method in ("train", "evaluate"):
            if not callable(getattr(task, method, None)):
                raise PlanError(f"task {type(task).__name__} has no method {method!r}; a task has train and evaluate")
        self.model = model
        self.task = task
        if algorithm is not None and not isinstance(algorithm, Algorithm):
            raise PlanError(f"algorithm is a {type(algorithm).__name__}; give an Algorithm, or its name in the plan")
        if data is not None and not callable(data) and not isinstance(data, str):
            raise PlanError(f"data is a {type(data).__name__}; give a callable that gives a shard, or 'module:Class'")
        if algorithm is not None:
            check_own(type(algorithm))
        self.algorithm = algorithm
        self.data = data
        self.plan = _with_algorithm(plan or Plan(), algorithm)
        self.sample_shape = None if sample_shape is None else tuple(sample_shape)
        self.target_shape = None if target_shape is None else tuple(target_shape)
        self.metrics = tuple(metrics if metrics is not None else getattr(task, "metric_names", ("loss",)))

    def make_model(self, seed: int) -> ModelAdapter:
        """Make the model under a seed.

        Raises:
            PlanError: the callable failed, or gave something that is not a model.
        """
        return adapt(build_seeded(self.model, seed))

    def build(self, seed: int | None = None, *, project: str | None = None) -> Built:
        """Turn the experiment into data, at home.

        Args:
            seed: root seed instead of the plan's; it becomes the plan's, so that what is signed is what runs.
            project: project instead of the experiment's own.

        Raises:
            PlanError: model, task and plan do not go together; the text says what to change.
        """
        plan = self.plan if seed is None else Plan(**{**self.plan.model_dump(), "seed": seed})
        adapter = self.make_model(plan.seed)
        schema = schema_of(adapter, plan)
        arrays = {name: array.copy() for name, array in adapter.arrays().items()}
        _refuse_not_finite(schema, arrays)
        algorithm = load_algorithm(plan, self.algorithm)
        check_task(self.task, algorithm, plan)
        uplink, downlink = algorithm.payload_rows(plan)
        try:
            spec = ExperimentSpec(
                name=self.name,
                project=project or self.project,
                shard=self.shard,
                plan=plan,
                tensors=tensor_rows(schema),
                optimizer_tensors=tensor_rows(_optimizer_schema(self.task, adapter, plan, schema)),
                metrics=algorithm.metric_names(self.metrics),
                uplink=uplink,
                downlink=downlink,
                sample_shape=self.sample_shape,
                target_shape=self.target_shape,
            )
        except ValidationError as error:
            reasons = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
            raise PlanError(f"experiment {self.name!r} is not valid: {reasons}") from error
        check(spec, self.algorithm)
        return Built(spec=spec, arrays=arrays)


def _refuse_not_finite(schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
    """Refuse a first model that no site could answer: an update with a float that is not finite is not admitted.

    Raises:
        PlanError: a tensor that travels holds such a value.
    """
    for spec in schema.federated:
        if spec.dtype.is_float and not np.isfinite(arrays[spec.name]).all():
            raise PlanError(
                f"{spec.name!r} of the initial model has values that are not finite, and no update with them is "
                f'admitted: change them, or keep the tensor at the sites with Plan(local=("{spec.name}",))'
            )


def check_task(task: Task, algorithm: Algorithm, plan: Plan) -> None:
    """Refuse a task that cannot do what algorithm and plan ask of it.

    Raises:
        PlanError: says what to use instead.
    """
    choice = getattr(task, "optimizer_choice", None)
    if choice is not None:
        algorithm.check_optimizer(choice)
    if callable(getattr(task, "problem", None)):
        return
    name = type(task).__name__
    way_out = "use SupervisedTask or GradientTask, or write problem()"
    if algorithm.needs_problem:
        raise PlanError(
            f"task {name} has no method problem(); algorithm {algorithm.name!r} corrects its gradients: {way_out}"
        )
    if plan.estimator != "minibatch":
        raise PlanError(
            f"task {name} has no method problem(); estimator {plan.estimator!r} draws its batches: {way_out}"
        )


def _with_algorithm(plan: Plan, algorithm: Algorithm | None) -> Plan:
    if algorithm is None:
        return plan
    return Plan(**{**plan.model_dump(), "algorithm": algorithm.name, "options": algorithm.options()})


def schema_of(adapter: ModelAdapter, plan: Plan) -> TensorSchema:
    """Return the schema of a model: each tensor with the role model and plan give it (rule 2 above).

    Raises:
        PlanError: a tensor's name, dtype or number is not one that can be federated.
    """
    specs = []
    for name, array in adapter.arrays().items():
        kind = adapter.kinds[name]
        role = TensorRole.LOCAL if kind is Kind.FROZEN else plan.role_of(name, is_trained=kind is Kind.TRAINED)
        try:
            specs.append(TensorSpec(name=name, dtype=DType.of(array.dtype), shape=array.shape, role=role))
        except ValueError as error:
            raise PlanError(f"tensor {name!r} of the model: {error}") from error
    try:
        return TensorSchema.of(specs)
    except ValueError as error:
        raise PlanError(f"the model: {error}") from error


def _optimizer_schema(task: Task, adapter: ModelAdapter, plan: Plan, schema: TensorSchema) -> TensorSchema:
    """Return what of the optimizer's state travels: that of federated parameters, averaged as buffers are."""
    if plan.optimizer_state != "aggregate":
        return TensorSchema(())
    describe = getattr(task, "optimizer_tensors", None)
    if describe is None:
        raise PlanError(
            f"the plan aggregates optimizer state, but task {type(task).__name__} has no method optimizer_tensors; "
            'write one or set optimizer_state to "reset" or "keep"'
        )
    state: Mapping[str, Array] = describe(adapter.model, plan.learning_rate)
    specs = [
        TensorSpec(name=name, dtype=DType.of(array.dtype), shape=array.shape, role=TensorRole.BUFFER)
        for name, array in state.items()
        if name.rpartition("/")[0] in schema.parameters
    ]
    if not specs:
        raise PlanError(
            'the plan aggregates optimizer state, but the optimizer has none; set optimizer_state to "reset"'
        )
    return TensorSchema.of(specs)
