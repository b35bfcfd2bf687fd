"""What a torch model is trained for: its loss and metrics on a batch. Imports torch.

Samples are handed over in the dtype of the model's parameters; losses and metrics of half-precision outputs are
computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as functional

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.training.recipe import Recipe


class Objective:
    """Loss and metrics of a task, for one model.

    Args:
        recipe: names or callables of both.
        model: what gives outputs.
        parameters: of the model; they give the dtype of samples.
    """

    def __init__(self, recipe: Recipe, model: torch.nn.Module, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._loss = recipe.loss
        self._metrics = recipe.metrics
        self._device = torch.device(recipe.device)
        self._model = model
        self._dtype = next((each.dtype for each in parameters if each.is_floating_point()), torch.float32)

    def forward(self, samples: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the model's output on samples, and the targets, on the device of the task."""
        output = self._model(self.sample(samples))
        return self.output(output), self.target(targets)

    def sample(self, samples: Any) -> torch.Tensor:
        """Return samples as the model takes them."""
        sample = _tensor(samples)
        if sample.dtype is not self._dtype and sample.is_floating_point():
            sample = sample.to(self._dtype)
        return self._placed(sample)

    def target(self, targets: Any) -> torch.Tensor:
        """Return targets as loss and metrics take them."""
        return self._placed(_tensor(targets))

    def output(self, output: torch.Tensor) -> torch.Tensor:
        """Return an output as loss and metrics take it."""
        return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch."""
        if not isinstance(self._loss, str):
            return self._loss(output, target)
        if self._loss == "cross_entropy":
            return functional.cross_entropy(output, target if target.is_floating_point() else target.long())
        target = _like(target, output)
        if self._loss == "bce_with_logits":
            return functional.binary_cross_entropy_with_logits(output, target)
        return functional.mse_loss(output, target) if self._loss == "mse" else functional.l1_loss(output, target)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.device == self._device else tensor.to(self._device)

    def measure(self, loss: torch.Tensor, output: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
        """Return the loss and each metric of a batch, as means over its examples."""
        values = {"loss": float(loss.item())}
        if not self._metrics:
            return values
        output = output.detach()
        for name, metric in self._metrics.items():
            if metric == "gradient_norm":
                continue  # of the whole data at x, not of a batch: the problem computes it
            values[name] = _named_metric(name, output, target) if isinstance(metric, str) else metric(output, target)
        return values


def _tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(values) if type(values) is np.ndarray else torch.as_tensor(values)


def _like(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    if target.shape != output.shape and target.numel() == output.numel():
        target = target.reshape(output.shape)
    return target.to(output.dtype)


def _named_metric(name: str, output: torch.Tensor, target: torch.Tensor) -> float:
    if name == "accuracy":
        if output.ndim > 1 and output.shape[1] > 1:
            right = output.argmax(dim=1) == (target if target.ndim < output.ndim else target.argmax(dim=1))
        else:
            right = (output > 0) == (_like(target, output) > 0.5)  # a logit above 0 is a probability above 1/2
        return float(right.float().mean())
    error = output - _like(target, output)
    return float(error.abs().mean() if name == "mean_absolute_error" else error.square().mean())
