"""The ready-made task for models of NumPy arrays: write the gradient, and every algorithm works with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from federation.algorithms.client import OptimizerChoice
from federation.errors import PlanError
from federation.training.array_problem import ArrayProblem, means_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.data.local import LocalData
    from federation.tensors.buffers import Array
    from federation.training.context import RoundContext


class GradientTask(ABC):
    """Train a dictionary of arrays by SGD on gradients of your own.

    Subclass it and write `gradient`; `evaluate` reports the same metrics on the validation data unless you write your
    own.

    Example:
        >>> import numpy as np
        >>> class LeastSquares(GradientTask):
        ...     def gradient(self, model, samples, targets):
        ...         error = samples @ model["w"] - targets
        ...         return {"loss": float(error @ error) / (2 * len(error))}, {"w": samples.T @ error / len(error)}

    Args:
        batch_size: examples per step.
        evaluation_batch_size: examples per batch of an evaluation or a full gradient.
        momentum: of SGD.
        weight_decay: of SGD.
        metrics: beside the loss: names that `gradient` and `evaluate` report.

    Raises:
        PlanError: a size below 1.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        evaluation_batch_size: int = 1024,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        metrics: Sequence[str] = (),
    ) -> None:
        for size, what in ((batch_size, "batch_size"), (evaluation_batch_size, "evaluation_batch_size")):
            if size < 1:
                raise PlanError(f"{what} must be at least 1, got {size}")
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        options = {"momentum": momentum, "weight_decay": weight_decay}
        self.optimizer_options: Mapping[str, float] = {name: value for name, value in options.items() if value}
        self.metric_names: tuple[str, ...] = ("loss", *metrics)

    @abstractmethod
    def gradient(
        self, model: dict[str, Array], samples: Any, targets: Any
    ) -> tuple[Mapping[str, float], Mapping[str, Array]]:
        """Return metrics and gradients of one batch, both as means over its examples.

        Args:
            model: arrays by name; not to be written.
            samples: of the batch, first axis the examples.
            targets: likewise.

        Returns:
            Metrics, with ``loss`` among them, and the gradient of the loss by each float tensor of the model.
        """

    @property
    def optimizer_choice(self) -> OptimizerChoice:
        """The local optimizer: SGD, with what it was given."""
        return OptimizerChoice(name="sgd", options=self.optimizer_options)

    def problem(self, model: dict[str, Array], data: LocalData, round: RoundContext) -> ArrayProblem:
        """Return the site's problem, for algorithms that do more than have it trained."""
        return ArrayProblem(self, model, data, round)

    def train(self, model: dict[str, Array], data: LocalData, round: RoundContext) -> dict[str, float]:
        """Train in place for as long as the round says; returns means over the examples trained on."""
        return dict(self.problem(model, data, round).run().metrics)

    def evaluate(self, model: dict[str, Array], data: LocalData) -> Mapping[str, float]:
        """Return means over the validation examples of what `gradient` reports."""
        return means_of(self, model, data.batches(self.evaluation_batch_size, part="validation"))
