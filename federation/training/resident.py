"""The model of an experiment in one process, made once; several sites may take turns with it.

Rules, in order:

1. What is trained is the model of the signed spec. If the author's code makes another here (another library version,
   a size read from the data), nothing runs and the error names the first tensor that differs.
2. Loading puts every tensor that can change into place: federated ones from the round's model, local ones from the
   state of the site whose turn it is. What a model keeps beside its tensors (Python attributes) is not carried over.
3. A round is *plain* if the algorithm's client half is FedAvg's own, gradients are those of minibatches and the change
   travels as it is: then the task trains the model itself and nothing is copied.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from federation.algorithms.client import ClientHalf
from federation.algorithms.registry import load_algorithm
from federation.errors import PlanError, StorageError
from federation.tensors import unpack
from federation.training.exchange import DELTA, MODEL
from federation.training.experiment import Experiment, schema_of
from federation.training.models import Kind
from federation.training.supervised import SupervisedTask

if TYPE_CHECKING:
    from federation.data.local import LocalData
    from federation.plan import ExperimentSpec
    from federation.tensors import TensorSchema
    from federation.tensors.buffers import Array
    from federation.training.exchange import Buffer, Inputs
    from federation.training.state import LocalState


class WrongModelError(PlanError):
    """The author's code makes another model here than at home."""


class Resident:
    """An experiment, loaded: its task, its model, its algorithm's client half.

    Args:
        experiment: as loaded from the bundle.
        spec: the signed spec; its plan holds, whatever `experiment` says here.
        base: flat buffer of the LOCAL tensors as submitted; None if there are none.

    Attributes:
        task: of the experiment.
        spec: the signed spec.
        schema: of the whole model.
        client: the algorithm's client half.
        algorithm: the plan's, or the experiment's own object of that name.
        is_plain: rule 3.
        federated: names of the trained and federated tensors, in schema order.
        plans: the payloads of an update, by name, in the order they are sent.
        changing: names of the LOCAL tensors that may change.
        keeps_state: whether a round may leave anything at its site.

    Raises:
        PlanError: the experiment does not make the model of the spec.
        StorageError: `base` has the wrong size.
    """

    def __init__(self, *, experiment: Experiment, spec: ExperimentSpec, base: Buffer | None) -> None:
        self.task = experiment.task
        self.spec = spec
        self.schema = spec.schema_
        self.algorithm = load_algorithm(spec.plan, experiment.algorithm)
        self.client = self.algorithm.client()
        self._adapter = experiment.make_model(spec.plan.seed)
        _check_same(schema_of(self._adapter, spec.plan), self.schema)
        _set_up_torch(spec.plan.threads)
        self._arrays: dict[str, Array] | None = None
        local = self.schema.local
        if local:
            self._put_base(base)
        kinds = self._adapter.kinds
        self.changing = tuple(each.name for each in local if kinds[each.name] is not Kind.FROZEN)
        self.federated = tuple(each.name for each in self.schema.parameters)
        self.plans = {plan.name: plan for plan in spec.uploads()}
        self.is_plain = (
            type(self.client) is ClientHalf
            and spec.plan.estimator == "minibatch"
            and self.plans[DELTA].codec == "identity"
        )
        self.keeps_state = bool(self.changing) or not self.is_plain or spec.plan.optimizer_state == "keep"
        arrays = self.arrays()
        self._submitted = {name: arrays[name].copy() for name in self.changing}

    @property
    def model(self) -> object:
        """The model, as the task is handed it."""
        return self._adapter.model

    def arrays(self) -> dict[str, Array]:
        """Return live views of every tensor, by name.

        Raises:
            PlanError: the task changed a name, dtype or shape.
        """
        if self._arrays is None:
            self._arrays = self._adapter.arrays()
        return self._arrays

    def load(self, inputs: Inputs, state: LocalState) -> dict[str, Array]:
        """Put a round's model and a site's local tensors into place; returns the live views.

        Raises:
            StorageError: the model cannot be read.
        """
        arrays = self.arrays()
        inputs.read(MODEL, self.schema.federated, arrays)
        for name in self.changing:
            arrays[name][...] = state.tensors.get(name, self._submitted[name])
        return arrays

    def is_ours(self, data: LocalData) -> bool:
        """Tell whether training on these data surely runs nothing of the author's.

        Then it draws from no global random generator, and leaves every tensor in the memory it has.
        """
        return self.is_plain and isinstance(self.task, SupervisedTask) and self.task.is_ours(self.model, data)

    def touched(self) -> None:
        """Note that the author's code had the model: views may be of memory it no longer uses."""
        self._arrays = None

    def _put_base(self, base: Buffer | None) -> None:
        local = self.schema.local
        if base is None:
            raise PlanError(f"the model has {len(local)} local tensors, but their initial values did not come")
        arrays = self.arrays()
        try:
            values = unpack(local, base)
        except ValueError as error:
            raise StorageError(f"the initial values of the local tensors cannot be read: {error}") from error
        for name, value in values.items():
            arrays[name][...] = value


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
