"""An experiment as data: the plan, and what packing the experiment adds to it.

The submitter makes an `ExperimentSpec` at home and signs it inside the manifest; director, envoy, aggregator and
collaborator act on it. It is canonical JSON on the wire: equal specs, equal digests.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from federation.errors import PlanError
from federation.names import Digest, PayloadName
from federation.plan.plan import Plan
from federation.plan.validation import Frozen, MetricName, check_choice, check_written_name, explain
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec

MAX_METRICS = 64
_RESERVED_PAYLOADS = frozenset({"model", "base", "delta", "buffers", "optimizer", "step"})
"""Payload names that the protocol itself uses."""


class TensorRow(Frozen):
    """One tensor of the model, as JSON."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    role: TensorRole


class PayloadRow(Frozen):
    """One payload a method adds to what travels: as large as the parameters, or with tensors of its own.

    Attributes:
        name: its name; not one that the protocol uses itself.
        like: ``parameters``: it has exactly the trained, federated tensors of the model, as float32 where those are
            half precision. Empty: it has `tensors`.
        tensors: its tensors, if it is not like the parameters.
        codec: how it is compressed.
    """

    name: str
    like: Literal["", "parameters"] = ""
    tensors: tuple[TensorRow, ...] = ()
    codec: str = "identity"

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        check_written_name(self.name, "payload name")
        if self.name in _RESERVED_PAYLOADS:
            raise ValueError(f"payload name {self.name!r} is taken; choose another")
        if bool(self.like) is bool(self.tensors):
            raise ValueError(f"payload {self.name!r} must be like the parameters or have tensors, one of both")
        check_choice(self.codec, f"codec of payload {self.name!r}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadPlan:
    """One payload of every update, or of every broadcast: what it is called, holds, and how it is compressed."""

    name: PayloadName
    schema: TensorSchema
    codec: str


class ExperimentSpec(Frozen):
    """An experiment as data: the plan and what packing adds. Made at home, signed, never changed after.

    Attributes:
        format: version of this document; a newer one is refused with the advice to update.
        name: name its author gave it.
        project: project it belongs to.
        shard: shard kind a site must offer.
        plan: the plan.
        tensors: every tensor of the model, local ones included, in canonical order.
        optimizer_tensors: schema of aggregated optimizer state; empty unless the plan aggregates it.
        metrics: names a site may report, training and evaluation together.
        sample_shape: shape of one sample the model takes; None: not checked.
        target_shape: shape of one target; None: not checked.
        uplink: the method's payloads of an update beyond delta, buffers and optimizer, in order.
        downlink: the method's vectors that the server sends beside the model, in order.
    """

    format: Literal[1] = 1
    name: str
    project: str = "default"
    shard: str
    plan: Plan
    tensors: tuple[TensorRow, ...]
    optimizer_tensors: tuple[TensorRow, ...] = ()
    metrics: tuple[MetricName, ...] = Field(default=("loss",), max_length=MAX_METRICS)
    sample_shape: tuple[int, ...] | None = None
    target_shape: tuple[int, ...] | None = None
    uplink: tuple[PayloadRow, ...] = ()
    downlink: tuple[PayloadRow, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for text, what in ((self.name, "experiment name"), (self.project, "project"), (self.shard, "shard kind")):
            check_written_name(text, what)
        schema = self.schema_
        if not schema.parameters.elements:
            raise ValueError("no tensor is both trained and federated: nothing would be learnt together")
        plan = self.plan
        for row in self.tensors:
            # The roles decide what leaves a silo, so the signed rows may not say otherwise than the signed plan.
            if row.role is not TensorRole.LOCAL and plan.role_of(row.name, is_trained=True) is TensorRole.LOCAL:
                raise ValueError(f"the plan keeps tensor {row.name!r} local, but its role is {row.role.value}")
        for pattern in (*plan.federated, *plan.local):
            if pattern != "*" and not any(fnmatch.fnmatchcase(row.name, pattern) for row in self.tensors):
                raise ValueError(f"pattern {pattern!r} matches no tensor of the model; is it a typo?")
        if bool(self.optimizer_tensors) is not (plan.optimizer_state == "aggregate"):
            raise ValueError("optimizer_tensors must be given exactly when optimizer_state is 'aggregate'")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metric names must be unique, got {list(self.metrics)}")
        if (plan.early_stopping or plan.evaluate_every) and plan.best.metric not in self.metrics:
            raise ValueError(f"best metric {plan.best.metric!r} is not among the metrics {list(self.metrics)}")
        if any(not spec.dtype.is_float for spec in schema.parameters):
            raise ValueError("a trained, federated tensor must have a float dtype")
        for way, rows in (("uplink", self.uplink), ("downlink", self.downlink)):
            names = [payload.name for payload in rows]
            if len(set(names)) != len(names):
                raise ValueError(f"payload names of the {way} must be unique, got {names}")
        return self

    @cached_property
    def schema_(self) -> TensorSchema:
        """Schema of the whole model, local tensors included."""
        return _schema(self.tensors)

    @cached_property
    def optimizer_schema(self) -> TensorSchema:
        """Schema of aggregated optimizer state; empty unless the plan aggregates it."""
        return _schema(self.optimizer_tensors)

    def uploads(self) -> tuple[PayloadPlan, ...]:
        """Return the payloads of every update, in the order they are sent: the model's own, then the method's."""
        return self._uploads

    @cached_property
    def _uploads(self) -> tuple[PayloadPlan, ...]:
        schema = self.schema_
        own = [PayloadPlan(name=PayloadName("delta"), schema=schema.parameters, codec=self.plan.compression)]
        for name, tensors in (("buffers", schema.buffers), ("optimizer", self.optimizer_schema)):
            if tensors.nbytes:
                own.append(PayloadPlan(name=PayloadName(name), schema=tensors, codec="identity"))
        return (*own, *map(self._planned, self.uplink))

    def downloads(self) -> tuple[PayloadPlan, ...]:
        """Return the method's payloads that every training task brings beside the model, in order."""
        return self._downloads

    @cached_property
    def _downloads(self) -> tuple[PayloadPlan, ...]:
        return tuple(map(self._planned, self.downlink))

    def _planned(self, row: PayloadRow) -> PayloadPlan:
        schema = self.schema_.parameters.widened if row.like else _schema(row.tensors)
        return PayloadPlan(name=PayloadName(row.name), schema=schema, codec=row.codec)

    def canonical_json(self) -> bytes:
        """The bytes that are signed and digested: sorted keys, no spaces, ASCII."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical JSON."""
        return Digest(hashlib.sha256(self.canonical_json()).digest())

    @classmethod
    def parse(cls, document: bytes | str | dict[str, Any]) -> ExperimentSpec:
        """Read a spec back.

        Raises:
            PlanError: it is not valid; the text names each field that is wrong.
        """
        try:
            if isinstance(document, dict):
                return cls.model_validate(document)
            return cls.model_validate_json(document)
        except ValidationError as error:
            raise PlanError(explain(error, "experiment", cls)) from error


def tensor_rows(schema: TensorSchema) -> tuple[TensorRow, ...]:
    """Return a schema as the rows of an `ExperimentSpec`."""
    return tuple(TensorRow(name=spec.name, dtype=spec.dtype, shape=spec.shape, role=spec.role) for spec in schema)


def check_metrics(metrics: dict[str, float], allowed: tuple[str, ...]) -> dict[str, float]:
    """Return `metrics` if every name is allowed and every value finite.

    Raises:
        ValueError: names the first metric that is neither.
    """
    for name, value in metrics.items():
        if name not in allowed:
            raise ValueError(f"metric {name[:80]!r} is not among those the plan fixes: {', '.join(allowed)}")
        if not math.isfinite(value):
            raise ValueError(f"metric {name!r} is {value}, not a finite number")
    return metrics


def _schema(rows: tuple[TensorRow, ...]) -> TensorSchema:
    return TensorSchema(
        tuple(TensorSpec(name=row.name, dtype=row.dtype, shape=row.shape, role=row.role) for row in rows)
    )
