"""The ready-made task: supervised training of a torch model with a loss, an optimizer and batches.

Rules, in order:

1. The same (seed, round, site) gives the same update (`federation.training.torch_problem`, where the one training loop
   is).
2. A metric of a pass is the mean over examples. The loss is always reported, as ``loss``.
3. Metric ``gradient_norm`` is ‖∇F_i(x)‖ over all of the site's training examples, at the model as received; it is
   reported by training only and costs one more pass.

torch is imported when the task first works, not when it is defined.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from federation.errors import PlanError
from federation.training.optimizers import OPTIMIZERS, state_of
from federation.training.recipe import Recipe
from federation.training.structure import Structures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from federation.algorithms.client import OptimizerChoice
    from federation.data.local import LocalData
    from federation.tensors.buffers import Array
    from federation.training.context import RoundContext
    from federation.training.recipe import Loss, Metric, OptimizerFactory
    from federation.training.torch_problem import TorchProblem

LOSSES = ("cross_entropy", "bce_with_logits", "mse", "l1")
METRICS = ("accuracy", "mean_absolute_error", "mean_squared_error", "gradient_norm")


class SupervisedTask:
    """Train and evaluate an ``nn.Module`` on pairs of samples and targets.

    Args:
        loss: ``"cross_entropy"`` (targets: class numbers), ``"bce_with_logits"`` (targets: 0 or 1), ``"mse"``,
            ``"l1"``, or a callable (output, target) -> mean over the batch.
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``, ``"rmsprop"``, ``"adagrad"``, ``"nadam"``, ``"radam"``,
            ``"adamax"``, ``"adadelta"``, ``"rprop"``, ``"asgd"``, or a callable (parameters, learning_rate) -> torch
            optimizer.
        optimizer_options: further arguments of a named optimizer, such as ``{"momentum": 0.9}``.
        batch_size: examples per step.
        evaluation_batch_size: examples per batch of an evaluation.
        metrics: beside the loss: ``"accuracy"``, ``"mean_absolute_error"``, ``"mean_squared_error"``,
            ``"gradient_norm"`` (rule 3), or callables (output, target) -> mean over the batch, reported under their
            ``__name__``.
        max_gradient_norm: gradients are scaled down to this L2 norm, before an algorithm corrects them. None: never.
        device: where to compute, such as ``"cuda"``; the model comes back to the CPU after each pass.

    Raises:
        PlanError: an unknown name, or a size below 1.
    """

    def __init__(
        self,
        loss: str | Loss = "cross_entropy",
        optimizer: str | OptimizerFactory = "sgd",
        *,
        batch_size: int = 32,
        metrics: Sequence[str | Metric] = (),
        optimizer_options: Mapping[str, Any] | None = None,
        evaluation_batch_size: int = 256,
        max_gradient_norm: float | None = None,
        device: str = "cpu",
    ) -> None:
        _check_choice(loss, LOSSES, "loss")
        _check_choice(optimizer, tuple(OPTIMIZERS), "optimizer")
        for metric in metrics:
            _check_choice(metric, METRICS, "metric")
        for size, what in ((batch_size, "batch_size"), (evaluation_batch_size, "evaluation_batch_size")):
            if size < 1:
                raise PlanError(f"{what} must be at least 1, got {size}")
        self._recipe = Recipe(
            loss=loss,
            optimizer=optimizer,
            optimizer_options=dict(optimizer_options or {}),
            batch_size=batch_size,
            evaluation_batch_size=evaluation_batch_size,
            metrics={metric if isinstance(metric, str) else metric.__name__: metric for metric in metrics},
            max_gradient_norm=max_gradient_norm,
            device=device,
        )
        self._is_named = self._recipe.is_named
        self._structures = Structures()
        self.metric_names: tuple[str, ...] = ("loss", *self._recipe.metrics)

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._recipe.device

    @property
    def optimizer_choice(self) -> OptimizerChoice:
        """The local optimizer; a factory of the author's goes by its name."""
        return self._recipe.optimizer_choice

    def on(self, device: str) -> SupervisedTask:
        """Return the same task for another device, such as ``"cuda:1"``."""
        other = copy.copy(self)
        other._recipe = replace(self._recipe, device=device)
        return other

    def problem(self, model: torch.nn.Module, data: LocalData, round: RoundContext) -> TorchProblem:
        """Return the site's problem, for algorithms that do more than have it trained; seeds torch for the round."""
        from federation.training.torch_problem import TorchProblem

        return TorchProblem(self._recipe, model, self._structures.of(model), data, round)

    def train(self, model: torch.nn.Module, data: LocalData, round: RoundContext) -> dict[str, float]:
        """Train in place for as long as the round says; returns means over the examples trained on."""
        known = self._structures.known(model)
        if known is not None:
            from federation.training.plain_run import train, way_through

            layers = way_through(self._recipe, model, known, data, round)
            if layers is not None:
                return train(layers, data, self._recipe.batch_size, round)
        return dict(self.problem(model, data, round).run().metrics)

    def is_ours(self, model: object, data: LocalData) -> bool:
        """Tell whether `train` surely runs nothing of the author's.

        Then it draws from no global random generator, and every tensor stays in its memory. Data are arrays, layers are
        torch's own and plain, and nothing is of a class or a function of the author's.
        """
        if type(self) is not SupervisedTask or "train" in vars(self) or not self._is_named or not data.is_arrays:
            return False
        structure = self._structures.known(model)  # type: ignore[arg-type]  # another model is not known
        layers = None if structure is None else structure.plain_layers(model)  # type: ignore[arg-type]  # it is one
        return layers is not None and layers.draws_nothing(model)  # type: ignore[arg-type]  # likewise

    def evaluate(self, model: torch.nn.Module, data: LocalData) -> dict[str, float]:
        """Return means over the validation examples, in evaluation mode."""
        from federation.training.torch_problem import evaluate

        return evaluate(self._recipe, model, data)

    def optimizer_tensors(self, model: torch.nn.Module, learning_rate: float) -> dict[str, Array]:
        """Return state as the optimizer will hold it, by ``<parameter>/<key>``: one step without gradient on a copy."""
        import torch

        from federation.training.torch_problem import own_optimizer

        trial = copy.deepcopy(model)
        parameters = [parameter for parameter in trial.parameters() if parameter.requires_grad]
        optimizer = own_optimizer(self._recipe, parameters, learning_rate)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return state_of(optimizer, trial)


def _check_choice(value: object, known: tuple[str, ...], what: str) -> None:
    if callable(value) or value in known:
        return
    raise PlanError(f"unknown {what} {value!r}; give a callable or one of {', '.join(known)}")
