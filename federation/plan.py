"""The plan: everything an experiment fixes, validated once, then frozen.

A `Plan` is what its author writes. An `ExperimentSpec` is the plan together with what packing the experiment adds
(name, shard kind, schema of the model, metrics): the submitter makes it at home and signs it inside the manifest, and
director, envoy, aggregator and collaborator act on it as data. Both are canonical JSON on the wire: equal plans, equal
digests.

Combinations that are not sound are refused here, at submission, with the reason; nothing is silently weakened.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from federation.errors import InvalidNameError, PlanError
from federation.names import Digest, PayloadName, check_name
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec

MAX_METRICS = 64
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z][a-zA-Z0-9_]{0,63}$")]
OptionValue = bool | int | float | str
"""One option of an algorithm or rule, as JSON has it; which there are and what they mean, that one says."""
_CHOICE = re.compile(r"[a-z0-9_]+(:[-+0-9.e,a-z]+)*")
_ESTIMATOR = re.compile(r"minibatch|full|subset:[1-9][0-9]{0,9}")
_RESERVED_PAYLOADS = frozenset({"model", "base", "delta", "buffers", "optimizer", "step"})
"""Payload names that the protocol itself uses."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BestModel(_Frozen):
    """Which model is the best one: `metric` of the federated evaluation, and whether more or less of it is better."""

    metric: MetricName = "loss"
    direction: Literal["min", "max"] = "min"

    def is_better(self, value: float, than: float | None, *, by: float = 0.0) -> bool:
        """Tell whether `value` improves on `than` (None: nothing yet) by more than `by`."""
        if than is None:
            return True
        return value < than - by if self.direction == "min" else value > than + by


class EarlyStopping(_Frozen):
    """Stop after `patience` evaluations in which the best metric did not improve by more than `min_delta`."""

    patience: int = Field(ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class Quarantine(_Frozen):
    """When a site is not asked any more: its `score` was beyond `threshold` in so many `rounds` in a row.

    Attributes:
        score: ``distance`` or ``krum``, relative to the round's median of it, or ``cosine``; see
            `federation.aggregation.scores`.
        threshold: for ``distance`` and ``krum`` a factor of 1 or more; for ``cosine`` the value below which it is.
        rounds: k.
    """

    score: Literal["distance", "cosine", "krum"] = "krum"
    threshold: float
    rounds: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.score == "cosine" and not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold of a cosine is {self.threshold:g}, expected -1 to 1, such as 0")
        if self.score != "cosine" and self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold:g} times the median of {self.score}, expected 1 or more")
        return self


class Plan(_Frozen):
    """What one experiment does, round by round.

    Attributes:
        rounds: rounds to run, at most.
        sites: sites wanted; the first round starts when this many have joined. None: as many as `minimum_sites`.
        minimum_sites: fewest connected sites a round may start with; below it, or below `quorum`, the experiment is
            paused.
        sample: sites asked each round, drawn from the connected ones by `seed`. None: all.
        quorum: answers a round needs. None: all that were asked. Fewer lets the round go on without stragglers.
        deadline_s: seconds a round waits for answers; then it goes on if it has its quorum and fails if not.
        local_epochs: passes over the local data each round; give this or `local_steps`.
        local_steps: optimizer steps each round.
        learning_rate: local step size, handed to the task's optimizer.
        threads: CPU threads a trainer computes with. 1 by default: results repeat and silos share machines.
        seed: root of every random stream, derived from it by (round, site, purpose).
        evaluate_every: federated evaluation after every k-th round, and after the last. 0: never.
        early_stopping: when to stop before `rounds`; None: never.
        best: which model is kept as the best.
        optimizer_state: what becomes of the local optimizer's state between rounds: ``reset`` it, ``keep`` it at the
            site, or ``aggregate`` it (sent up, averaged like the model, sent down).
        federated: shell patterns of the parameters and buffers that are federated. All by default.
        local: shell patterns of those that are not, though they match `federated`: a frozen backbone, a local head.
        weighting: ``examples`` weighs a site by its training examples, ``uniform`` weighs all alike.
        rule: aggregation rule, by its registered name.
        rule_options: options of the rule; it says which there are.
        byzantine: f, hostile sites the rule shall stand.
        pre_aggregation: what is done to the updates before the rule sees them, in order, such as ``("nnm",)`` or
            ``("bucketing:2",)``.
        max_examples: cap on the examples a site may claim; beyond what its envoy declared it may never claim.
        max_norm: largest L2 norm of a site's parameter change; a larger one is refused. None: unbounded.
        max_share: most that one site may weigh, as a share of all weights by examples; what is above it is cut to it,
            such as 0.3. None: whatever the examples give.
        max_norm_ratio: longest change of a site in units of the median norm of the last ten rounds; a longer one is
            refused, such as 5. None: unbounded.
        quarantine: when a site is not asked any more; see `Quarantine`. None: never.
        max_failures: rounds in a row that may miss their quorum before the experiment fails.
        join_timeout_s: seconds the experiment waits for `sites` to join, and, once paused, for sites to come back.
        algorithm: method, by its registered name.
        options: options of the algorithm; it says which there are.
        server_learning_rate: η_g, step size of the server along what the sites' changes amount to.
        server_schedule: how η_g goes over the rounds, such as ``cosine``; see `federation.rounds.schedules`.
        local_schedule: how `learning_rate` goes over the rounds.
        compression: codec of what sites send, their change and the method's vectors, such as ``top_k:0.01``.
        downlink: codec of what the server sends, the way from the model sites hold to its own, such as ``qsgd:16``.
        error_feedback: sites keep what compression lost and add it to their next update. None: on for biased codecs,
            unless the algorithm has its own.
        sampler: how the sites of a round are drawn, such as ``poisson:0.1``; see `federation.rounds.sampling`.
        estimator: what a local gradient is taken over where a method asks for one: ``minibatch``, ``full`` or
            ``subset:SIZE``.
        local_seconds: seconds a site trains each round; `local_steps`, if given, is then the most steps it takes.
    """

    rounds: int = Field(default=10, ge=1, le=1_000_000)
    sites: int | None = Field(default=None, ge=1, le=10_000)
    minimum_sites: int = Field(default=1, ge=1, le=10_000)
    sample: int | None = Field(default=None, ge=1, le=10_000)
    quorum: int | None = Field(default=None, ge=1, le=10_000)
    deadline_s: float = Field(default=3600.0, gt=0, le=30 * 86400)
    local_epochs: int | None = Field(default=None, ge=1, le=100_000)
    local_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    learning_rate: float = Field(default=0.01, gt=0)
    threads: int = Field(default=1, ge=1, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**63)
    evaluate_every: int = Field(default=1, ge=0)
    early_stopping: EarlyStopping | None = None
    best: BestModel = BestModel()
    optimizer_state: Literal["reset", "keep", "aggregate"] = "reset"
    federated: tuple[str, ...] = ("*",)
    local: tuple[str, ...] = ()
    weighting: Literal["examples", "uniform"] = "examples"
    rule: str = "mean"
    rule_options: dict[str, OptionValue] = {}
    byzantine: int = Field(default=0, ge=0, le=10_000)
    pre_aggregation: tuple[str, ...] = Field(default=(), max_length=8)
    max_examples: int | None = Field(default=None, ge=1)
    max_norm: float | None = Field(default=None, gt=0)
    max_share: float | None = Field(default=None, gt=0, le=1)
    max_norm_ratio: float | None = Field(default=None, ge=1)
    quarantine: Quarantine | None = None
    max_failures: int = Field(default=3, ge=1)
    join_timeout_s: float = Field(default=3600.0, gt=0, le=365 * 86400)
    algorithm: str = "fedavg"
    options: dict[str, OptionValue] = {}
    server_learning_rate: float = Field(default=1.0, gt=0)
    server_schedule: str = "constant"
    local_schedule: str = "constant"
    compression: str = "identity"
    downlink: str = "identity"
    error_feedback: bool | None = None
    sampler: str = "uniform"
    estimator: str = "minibatch"
    local_seconds: float | None = Field(default=None, gt=0)

    def __init__(self, **values: Any) -> None:
        """Validate the plan.

        Raises:
            PlanError: a field is unknown, out of range, or contradicts another; the text names each.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise PlanError(_explain(error, "plan")) from error

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("give local_epochs or local_steps, not both")
        if self.local_seconds is not None and self.local_epochs is not None:
            raise ValueError("local_seconds: give local_epochs or local_seconds, not both")
        if self.sites is not None and self.sites < self.minimum_sites:
            raise ValueError(f"sites is {self.sites}, fewer than minimum_sites, {self.minimum_sites}")
        if self.sample is not None and self.sample > self.sites_wanted:
            raise ValueError(f"sample is {self.sample}, more than the {self.sites_wanted} sites wanted")
        if self.quorum is not None and self.sample is not None and self.quorum > self.sample:
            raise ValueError(f"quorum is {self.quorum}, more than the {self.sample} sites asked")
        _check_name(self.rule.replace("_", "-"), "aggregation rule")
        _check_name(self.algorithm.replace("_", "-"), "algorithm")
        for field in ("server_schedule", "local_schedule", "compression", "downlink", "sampler"):
            _check_choice(getattr(self, field), field)
        for choice in self.pre_aggregation:
            _check_choice(choice, "pre_aggregation")
        if not _ESTIMATOR.fullmatch(self.estimator):
            raise ValueError(f"estimator is {self.estimator[:80]!r}, expected minibatch, full or subset:SIZE")
        if self.quorum is not None and self.quorum > self.sites_wanted:
            raise ValueError(f"quorum is {self.quorum}, more than the {self.sites_wanted} sites wanted")
        if self.early_stopping is not None and self.evaluate_every == 0:
            raise ValueError("early_stopping needs evaluations: set evaluate_every to 1 or more")
        return self

    @property
    def sites_wanted(self) -> int:
        """Sites that must have joined before the first round."""
        return self.sites if self.sites is not None else self.minimum_sites

    @property
    def sites_needed(self) -> int:
        """Connected sites without which no round can succeed: the larger of `minimum_sites` and `quorum`."""
        return max(self.minimum_sites, self.quorum or 1)

    @property
    def epochs(self) -> int | None:
        """Local passes a round: `local_epochs`, or 1; None where `local_steps` or `local_seconds` say when to stop."""
        if self.local_steps is not None or self.local_seconds is not None:
            return None
        return self.local_epochs or 1

    def is_evaluated(self, round_number: int) -> bool:
        """Tell whether the model of this round is evaluated: every k-th, and the last."""
        if self.evaluate_every == 0:
            return False
        return round_number % self.evaluate_every == 0 or round_number == self.rounds

    def role_of(self, name: str, *, is_trained: bool) -> TensorRole:
        """Return the role the plan gives a tensor of the model.

        Args:
            name: tensor name.
            is_trained: whether it is a trained parameter (True) or a buffer or frozen parameter (False).
        """
        federated = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.federated)
        local = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.local)
        if not federated or local:
            return TensorRole.LOCAL
        return TensorRole.PARAMETER if is_trained else TensorRole.BUFFER


class TensorRow(_Frozen):
    """One tensor of the model, as JSON."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    role: TensorRole


class PayloadRow(_Frozen):
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
        _check_name(self.name, "payload name")
        if self.name in _RESERVED_PAYLOADS:
            raise ValueError(f"payload name {self.name!r} is taken; choose another")
        if bool(self.like) is bool(self.tensors):
            raise ValueError(f"payload {self.name!r} must be like the parameters or have tensors, one of both")
        _check_choice(self.codec, f"codec of payload {self.name!r}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadPlan:
    """One payload of every update, or of every broadcast: what it is called, holds, and how it is compressed."""

    name: PayloadName
    schema: TensorSchema
    codec: str


class ExperimentSpec(_Frozen):
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
            _check_name(text, what)
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
            raise PlanError(_explain(error, "experiment")) from error


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


def _check_name(text: str, what: str) -> None:
    """Check a name as a validator must: pydantic gathers ValueErrors and names the place of each."""
    try:
        check_name(text, what)
    except InvalidNameError as error:
        raise ValueError(str(error)) from error


def _check_choice(text: str, what: str) -> None:
    """Check that a codec, schedule or sampler is written as one; whether it exists, those who know them say."""
    if not _CHOICE.fullmatch(text):
        raise ValueError(f"{what} is {text[:80]!r}, expected a name and its parameters such as 'name:0.1'")


def _explain(error: ValidationError, what: str) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"]) or what
        got = problem.get("input")
        shown = "" if isinstance(got, dict) else f" (got {str(got)[:80]!r})"
        lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return f"the {what} is not valid: " + "; ".join(lines)
