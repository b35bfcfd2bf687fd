"""What a task asks for, read from its message and checked against the signed plan. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.collaborator.ordering import Asking, UnsignedPlanError
from federation.compression import load_codec
from federation.compression.parts import max_step_bytes
from federation.errors import MalformedMessageError
from federation.names import Attempt, Digest, PayloadName, RoundNumber
from federation.v1 import aggregator_pb2
from federation.wire import payloads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.plan import ExperimentSpec
    from federation.tensors import TensorSchema
    from federation.wire.payloads import Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """How a site that holds the model before gets the model of a task without fetching it whole.

    Attributes:
        change: the encoded change; its ``from_digest`` is that of the model before.
        buffers: values of the buffers; None if the model has none.
    """

    change: Payload
    buffers: Payload | None

    @property
    def from_digest(self) -> Digest:
        """Digest of the model it is added to."""
        if self.change.from_digest is None:
            raise ValueError("a step always says what it is added to")
        return self.change.from_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOrder:
    """One task.

    Attributes:
        is_training: train, or else evaluate.
        asking: round and attempt it belongs to.
        model: the model to start from or to evaluate.
        step: another way to that model, where the plan compresses what the server sends; None otherwise.
        optimizer: aggregated optimizer state to start from; None if there is none.
        extras: what the algorithm broadcasts, by name, in the order of the signed spec; none with an evaluation.
        inline: payloads that came with the task, by digest.
        deadline_s: time left to answer when it was sent, seconds.
    """

    is_training: bool
    asking: Asking
    model: Payload
    step: StepOrder | None
    optimizer: Payload | None
    extras: Mapping[PayloadName, Payload]
    inline: Mapping[bytes, bytes]
    deadline_s: float

    @property
    def model_digest(self) -> Digest:
        """Digest of the model."""
        if self.model.digest is None:
            raise ValueError("a task's payload always has a digest")
        return self.model.digest

    def is_same(self, other: TaskOrder) -> bool:
        """Tell whether `other` asks for the same thing again."""
        return (self.is_training, self.asking, self.model_digest) == (
            other.is_training,
            other.asking,
            other.model_digest,
        )

    @property
    def kind(self) -> aggregator_pb2.TaskKind:
        """The kind on the wire."""
        return aggregator_pb2.TASK_KIND_TRAIN if self.is_training else aggregator_pb2.TASK_KIND_EVALUATE


def read_task(message: aggregator_pb2.Task, spec: ExperimentSpec, initial_model: Digest) -> TaskOrder:
    """Read a task.

    Args:
        message: from the aggregator.
        spec: the signed spec.
        initial_model: digest of the first model, as signed.

    Raises:
        MalformedMessageError: kind or payloads cannot mean anything, or are not what the plan's model needs.
        UnsignedPlanError: the first model is not the signed one.
    """
    if message.kind not in (aggregator_pb2.TASK_KIND_TRAIN, aggregator_pb2.TASK_KIND_EVALUATE):
        raise MalformedMessageError(f"a task has kind {message.kind}, which is neither train nor evaluate")
    is_training = message.kind == aggregator_pb2.TASK_KIND_TRAIN
    asking = Asking(round=RoundNumber(message.round), attempt=Attempt(message.attempt))
    found = {each.name: each for each in payloads.payloads_from_proto(message.payloads, with_digest=True)}
    expected = {payloads.MODEL: spec.schema_.federated}
    extras = [plan.name for plan in spec.downloads()] if is_training else []
    expected.update((plan.name, plan.schema) for plan in spec.downloads() if is_training)
    if payloads.OPTIMIZER in found and spec.optimizer_tensors:
        expected[payloads.OPTIMIZER] = spec.optimizer_schema
    step = _take_step(found, spec)
    _check(tuple(found.values()), expected)
    model = found[payloads.MODEL]
    if is_training and (asking.round, asking.attempt) == (1, 1) and model.digest != initial_model:
        raise UnsignedPlanError("the first model is not the one that the submitter signed")
    return TaskOrder(
        is_training=is_training,
        asking=asking,
        model=model,
        step=step,
        optimizer=found.get(payloads.OPTIMIZER),
        extras={name: found[name] for name in extras},
        inline={bytes(each.digest): each.data for each in message.inline},
        deadline_s=message.deadline_s,
    )


def _take_step(found: dict[PayloadName, Payload], spec: ExperimentSpec) -> StepOrder | None:
    """Take what makes a step out of a task's payloads.

    Raises:
        MalformedMessageError: it is not one of the plan's codec and model.
    """
    if payloads.STEP not in found or spec.plan.downlink == payloads.IDENTITY_CODEC:
        return None
    schema, plan = spec.schema_, spec.plan
    change = found.pop(payloads.STEP)
    most = max_step_bytes(schema.parameters, load_codec(plan.downlink))
    got = (change.codec, change.schema_digest, change.encoded_bytes <= most, change.from_digest is not None)
    if got != (plan.downlink, schema.parameters.digest, True, True):
        raise MalformedMessageError(
            f"a step has {change.encoded_bytes} bytes, codec {change.codec!r} and from_digest {change.from_digest!r}; "
            f"by the signed plan it has at most {most} bytes, codec {plan.downlink!r} and the digest it is added to"
        )
    buffers = found.pop(payloads.BUFFERS, None)
    expected = {payloads.BUFFERS: schema.buffers} if schema.buffers.nbytes else {}
    _check((buffers,) if buffers is not None else (), expected)
    return StepOrder(change=change, buffers=buffers)


def read_base(message: aggregator_pb2.SessionWelcome, spec: ExperimentSpec, initial_base: Digest) -> Payload | None:
    """Read the payload that is delivered once; None if the model has no local tensors.

    Raises:
        MalformedMessageError: it is not what the plan's model needs.
        UnsignedPlanError: it is not the signed one.
    """
    if not spec.schema_.local:
        return None
    base = payloads.payload_from_proto(message.base, with_digest=True)
    _check((base,), {payloads.BASE: spec.schema_.local})
    if base.digest != initial_base:
        raise UnsignedPlanError("the tensors that stay at the sites are not the ones that the submitter signed")
    return base


def _check(found: tuple[Payload, ...], expected: Mapping[PayloadName, TensorSchema]) -> None:
    if sorted(payload.name for payload in found) != sorted(expected):
        names = ", ".join(payload.name for payload in found) or "none"
        raise MalformedMessageError(f"the aggregator offers payloads {names}; expected {', '.join(expected)}")
    for payload in found:
        schema = expected[payload.name]
        if payload.codec != payloads.IDENTITY_CODEC:
            raise MalformedMessageError(f"payload {payload.name} has codec {payload.codec!r}, which this site lacks")
        if payload.schema_digest != schema.digest or payload.encoded_bytes != schema.nbytes:
            raise MalformedMessageError(
                f"payload {payload.name} has {payload.encoded_bytes} bytes of {payload.schema_digest.hex()[:16]}…, "
                f"the signed spec has {schema.nbytes} bytes of {schema.digest.hex()[:16]}…"
            )
