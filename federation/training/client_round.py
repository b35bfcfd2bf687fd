"""One site's view of one round, as an algorithm's client half is handed it: `SiteRound`.

Rules, in order:

1. Nothing of the site's kept state is written. What `SiteRound.state` holds when the client half is done is pending
   until the verdict, and so is what compression lost: an update that did not count leaves both as they were.
2. A vector is encoded once, where the state is that needs C(v); the bytes that were made are the bytes that travel.
   `SiteRound.send` returns what the server will decode from them, so that a method can follow what the server knows.
3. Seeds name round, site and purpose, never the attempt: asked again, a site sends the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.algorithms.vector import Vector, widened
from federation.compression import decode_payload, encode_payload, feedback_for, load_codec, payload_damping
from federation.errors import PlanError
from federation.names import PayloadName
from federation.rounds.randomness import derive_seed, stream
from federation.tensors import DType
from federation.training.exchange import BUFFERS, DELTA, OPTIMIZER, SCALARS
from federation.training.problems import make_problem

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from federation.data.local import LocalData
    from federation.plan import PayloadPlan
    from federation.tensors import TensorSchema
    from federation.tensors.buffers import Array
    from federation.training.context import RoundContext
    from federation.training.exchange import Inputs, Outputs
    from federation.training.problems import SiteProblem
    from federation.training.resident import Resident
    from federation.training.state import LocalState

_FEEDBACK = "feedback."


class NonFiniteChangeError(PlanError):
    """What is to be compressed is not finite, or not expressible in the codec: training diverged."""


class SiteRound:
    """`federation.algorithms.client.ClientRound` over a resident model.

    Args:
        resident: the experiment, its model loaded for this round.
        context: the round.
        data: the site's data.
        arrays: live views of the model, by name.
        kept: the site's state; copied, never written.
        inputs: what came.
        outputs: receives what is sent; None in an evaluation, which sends nothing.

    Attributes:
        number: round, from 1.
        site: the site.
        seed: root seed of the plan.
        learning_rate: local step size of the round.
        problem: the site's training problem, at the model as received.
        start: x, the federated and trained tensors as received; never written.
        received: vectors the server broadcast, by payload name; never written.
        state: what the method keeps at this site, by slot; empty in its first round.
        written: bytes of each payload sent so far.
        metrics: training metrics of the latest run before ``delta`` was sent.
        steps: optimizer steps until then.
    """

    def __init__(
        self,
        resident: Resident,
        context: RoundContext,
        data: LocalData,
        arrays: Mapping[str, Array],
        kept: LocalState,
        inputs: Inputs,
        outputs: Outputs | None,
    ) -> None:
        self.number = context.number
        self.site = str(context.site)
        self.seed = context.seed
        self.learning_rate = context.learning_rate
        self._resident = resident
        self._context = context
        self._outputs = outputs
        parameters = resident.schema.parameters
        self.start = Vector({spec.name: arrays[spec.name].copy() for spec in parameters}).widened()
        self.received = {
            str(plan.name): _receive(inputs, plan.name, plan.schema)
            for plan in resident.spec.downloads()
            if inputs.has(plan.name)
        }
        self.state, self._feedback = _state_of(kept, resident.schema)
        self.written: dict[PayloadName, int] = {}
        self.metrics: Mapping[str, float] = {}
        self.steps = 0
        self._scalars: dict[str, float] = {}
        resident.touched()
        self.problem: SiteProblem = make_problem(resident.task, resident.model, data, context, self.start)

    def send(self, name: str, vector: Vector, *, whole: bool = False) -> Vector:
        """Encode one payload, once a round, and hand it over.

        Sending ``delta`` fixes what else the site reports: the buffers as they are, steps, and training metrics.

        Args:
            name: ``delta`` or one of the algorithm's vectors.
            vector: its value; the tensors of the payload's schema, in their dtypes or, where those are half precision,
                as float32.
            whole: send it as it is, whatever the plan's codec.

        Returns:
            What the server decodes, owned by the caller.

        Raises:
            ValueError: no such payload, it was sent already, or a tensor is missing or has another dtype or shape.
            NonFiniteChangeError: a value that is to be compressed is NaN or infinite.
        """
        plan = self._planned(name)
        if self._outputs is None:
            raise ValueError(f"payload {name!r}: an evaluation sends nothing; send it in work()")
        if plan.name in self.written:
            raise ValueError(f"payload {name!r} was sent already in this round")
        arrays = _checked(vector, plan.schema, name)
        if plan.codec == "identity":
            with np.errstate(all="ignore"):  # what does not fit half precision is refused by its checks
                sent = {spec.name: arrays[spec.name].astype(spec.dtype.numpy) for spec in plan.schema}
            self.written[plan.name] = self._outputs.write(plan.name, plan.schema, sent)
        else:
            data, sent = self._encode(plan, arrays, whole=whole)
            self.written[plan.name] = self._outputs.write_bytes(plan.name, data)
        if plan.name == DELTA:
            self._report()
        return Vector(sent).widened()

    def send_change(self) -> Vector:
        """Send y - x as ``delta``; returns what the server decodes of it."""
        with np.errstate(all="ignore"):  # what diverged is refused by its checks, with a better text
            change = self.problem.parameters - self.start
        return self.send(DELTA, change)

    def send_scalar(self, name: str, value: float) -> None:
        """Send one of the algorithm's scalars.

        Raises:
            ValueError: the algorithm names no such scalar.
        """
        schema = self._planned(SCALARS).schema
        if name not in schema:
            known = ", ".join(spec.name for spec in schema)
            raise ValueError(f"there is no scalar {name!r} among those of the algorithm: {known}")
        self._scalars[name] = float(value)

    def damping(self, name: str) -> float:
        """Return 1/(1 + ω) for an unbiased codec of this payload, 1 for the identity and biased ones."""
        plan = self._planned(name)
        return payload_damping(plan.schema.widened, load_codec(plan.codec))

    def rng(self, purpose: str) -> np.random.Generator:
        """Return a fresh generator of this round and site, for one purpose of the algorithm."""
        return self._context.rng(f"algorithm/{purpose}")

    def shared_rng(self, purpose: str) -> random.Random:
        """Return a fresh generator of this round, the same at every site and at the server."""
        return stream(self.seed, self.number, "", f"algorithm/{purpose}")

    def state_left(self) -> dict[str, Array]:
        """Return what the round leaves at the site, by ``<slot>/<key>``; copies."""
        left = {f"{slot}/{name}": array.copy() for slot, vector in self.state.items() for name, array in vector.items()}
        for payload, arrays in self._feedback.items():
            left.update((f"{_FEEDBACK}{payload}/{key}", np.array(array)) for key, array in arrays.items())
        return left

    def write_scalars(self) -> None:
        """Write the payload of scalars, if the algorithm has one.

        Raises:
            PlanError: a scalar was not sent.
        """
        plan = self._resident.plans.get(SCALARS)
        if plan is None or self._outputs is None:
            return
        missing = [spec.name for spec in plan.schema if spec.name not in self._scalars]
        if missing:
            raise PlanError(f"the algorithm's client half did not send scalar {missing[0]!r}; call round.send_scalar")
        arrays = {spec.name: np.asarray(self._scalars[spec.name]) for spec in plan.schema}
        self.written[SCALARS] = self._outputs.write(SCALARS, plan.schema, arrays)

    @property
    def oracle_calls(self) -> int:
        """Examples times gradient evaluations, of everything the method did so far."""
        return self.problem.oracle_calls

    def _report(self) -> None:
        self.metrics, self.steps = dict(self.problem.metrics), self.problem.steps
        if BUFFERS in self._resident.plans and self._outputs is not None:
            buffers = self._resident.schema.buffers
            self.written[BUFFERS] = self._outputs.write(BUFFERS, buffers, self._resident.arrays())
            self._resident.touched()

    def _encode(self, plan: PayloadPlan, arrays: dict[str, Array], *, whole: bool) -> tuple[bytes, dict[str, Array]]:
        """Return the bytes that travel and what they decode to; what compression lost stays as feedback."""
        name = str(plan.name)
        codec = load_codec("identity" if whole else plan.codec)
        feedback = None if whole else feedback_for(codec, self._resident.spec.plan, self._resident.algorithm, name)
        seed = derive_seed(self.seed, self.number, self.site, f"compression/{name}")
        state = self._feedback.get(name, {})
        target = arrays if feedback is None else feedback.before(arrays, state)
        try:
            data = encode_payload(plan.schema, target, codec, seed=seed, state=state)
        except ValueError as error:
            raise NonFiniteChangeError(f"payload {name!r} cannot be encoded: {error}") from error
        sent = decode_payload(data, plan.schema)
        if feedback is not None:
            self._feedback[name] = feedback.after(target, sent, data, state)
        return data, sent

    def _planned(self, name: str) -> PayloadPlan:
        plan = self._resident.plans.get(PayloadName(name))
        if plan is None or plan.name in (BUFFERS, OPTIMIZER):
            known = ", ".join(each for each in self._resident.plans if each not in (BUFFERS, OPTIMIZER))
            raise ValueError(f"the signed spec has no payload {name!r} for an algorithm to send, only {known}")
        return plan


def _receive(inputs: Inputs, name: PayloadName, schema: TensorSchema) -> Vector:
    arrays = {spec.name: np.empty(spec.shape, spec.dtype.numpy) for spec in schema}
    inputs.read(name, schema, arrays)
    return Vector(arrays)


def _state_of(kept: LocalState, schema: TensorSchema) -> tuple[dict[str, Vector], dict[str, dict[str, Array]]]:
    """Return a site's kept state as copies: vectors of the method, and what compression left per payload."""
    places = {spec.name: place for place, spec in enumerate(schema)}  # the order of a vector is the order of its sums

    def place_of(key: str) -> tuple[int, str]:
        return places.get(key.partition("/")[2], len(places)), key

    slots: dict[str, dict[str, Array]] = {}
    for key in sorted(kept.method, key=place_of):
        array = kept.method[key]
        slot, _, name = key.partition("/")
        slots.setdefault(slot, {})[name] = array.copy()
    vectors = {slot: Vector(arrays) for slot, arrays in slots.items() if not slot.startswith(_FEEDBACK)}
    left = {slot.removeprefix(_FEEDBACK): arrays for slot, arrays in slots.items() if slot.startswith(_FEEDBACK)}
    return vectors, left


def _checked(vector: Mapping[str, Array], schema: TensorSchema, payload: str) -> dict[str, Array]:
    """Return the arrays of a payload, of its dtypes or, where those are half precision, as float32 maybe."""
    arrays: dict[str, Array] = {}
    for spec in schema:
        value = vector.get(spec.name)
        if value is None:
            raise ValueError(f"payload {payload!r}: tensor {spec.name!r} is missing")
        array = np.ascontiguousarray(value).reshape(spec.shape) if value.shape == spec.shape else np.asarray(value)
        if spec.dtype is DType.FLOAT32:
            array = widened(array)
        if array.shape != spec.shape or array.dtype not in (spec.dtype.numpy, spec.dtype.widened.numpy):
            raise ValueError(
                f"payload {payload!r}: tensor {spec.name!r} is {array.dtype.name}{list(array.shape)}, "
                f"expected {spec.dtype.value}{list(spec.shape)}"
            )
        arrays[spec.name] = array
    return arrays
