"""The plan: what the author of an experiment decides, validated once, then frozen.

Combinations that are not sound are refused here, at submission, with the reason; nothing is silently weakened.
"""

from __future__ import annotations

import fnmatch
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from federation.errors import PlanError
from federation.plan.validation import Frozen, MetricName, check_choice, check_written_name, explain
from federation.tensors import TensorRole


def _in_one_problem(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Say what is wrong with an option once, not once for each kind that it could be."""
    try:
        return validate(value)
    except ValidationError as error:
        wanted = "a finite number" if isinstance(value, float) else "true or false, a number or text"
        raise ValueError(f"Input should be {wanted}") from error


OptionValue = Annotated[bool | int | float | str, WrapValidator(_in_one_problem)]
"""One option of an algorithm or rule, as JSON has it; which there are and what they mean, that one says."""
_ESTIMATOR = re.compile(r"minibatch|full|subset:[1-9][0-9]{0,9}")


class BestModel(Frozen):
    """Which model is the best one: `metric` of the federated evaluation, and whether more or less of it is better."""

    metric: MetricName = "loss"
    direction: Literal["min", "max"] = "min"

    def is_better(self, value: float, than: float | None, *, by: float = 0.0) -> bool:
        """Tell whether `value` improves on `than` (None: nothing yet) by more than `by`."""
        if than is None:
            return True
        return value < than - by if self.direction == "min" else value > than + by


class EarlyStopping(Frozen):
    """Stop after `patience` evaluations in a row in which the best metric did not improve by more than `min_delta`.

    Attributes:
        patience: k: the k-th such evaluation is the last. It counts evaluations, not rounds: with ``evaluate_every`` of
            5 and a patience of 2 the experiment stops 10 rounds after the last progress.
        min_delta: how much better than the value at the last progress is progress, in the metric's own unit.
    """

    patience: int = Field(ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class Quarantine(Frozen):
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


class Plan(Frozen):
    """What one experiment does, round by round.

    Attributes:
        rounds: rounds to run, at most.
        sites: sites wanted; the first round starts when this many have joined. None: as many as `minimum_sites`.
        minimum_sites: fewest connected sites a round may start with; below it, or below `quorum`, the experiment is
            paused.
        sample: sites asked each round, drawn from the connected ones by `seed`. None: all.
        quorum: answers a round needs. None: all that were asked. Fewer lets the round go on without stragglers.
        deadline_s: seconds a round waits for updates; then it goes on if it has its quorum and is tried again if not.
            Its evaluation waits as long at most, and not for sites that are still at a task they were late with.
        local_epochs: passes over the local data each round; give this, `local_steps` or neither, which is one pass.
        local_steps: optimizer steps each round.
        learning_rate: local step size, handed to the task's optimizer.
        threads: CPU threads a trainer computes with. 1 by default: results repeat and silos share machines.
        seed: root of every random stream, derived from it by (round, site, purpose).
        evaluate_every: federated evaluation after every k-th round, and after the last. 0: never.
        early_stopping: when to stop before `rounds`; None: never.
        best: which model is kept as the best. Without evaluations none is.
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
    rule_options: dict[str, OptionValue] = Field(default={})
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
    options: dict[str, OptionValue] = Field(default={})
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
            raise PlanError(explain(error, "plan", type(self))) from error

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
        check_written_name(self.rule.replace("_", "-"), "aggregation rule")
        check_written_name(self.algorithm.replace("_", "-"), "algorithm")
        for field in ("server_schedule", "local_schedule", "compression", "downlink", "sampler"):
            check_choice(getattr(self, field), field)
        for choice in self.pre_aggregation:
            check_choice(choice, "pre_aggregation")
        if not _ESTIMATOR.fullmatch(self.estimator):
            raise ValueError(f"estimator is {self.estimator[:80]!r}, expected minibatch, full or subset:SIZE")
        if self.quorum is not None and self.quorum > self.sites_wanted:
            raise ValueError(f"quorum is {self.quorum}, more than the {self.sites_wanted} sites wanted")
        if self.early_stopping is not None and self.evaluate_every == 0:
            raise ValueError("early_stopping needs evaluations: set evaluate_every to 1 or more")
        if self.best != BestModel() and self.evaluate_every == 0:
            raise ValueError("best chooses by evaluations: set evaluate_every to 1 or more, or leave best out")
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
