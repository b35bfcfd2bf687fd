"""The steps of one local run of a torch model. Imports torch.

A step: backward pass, clipping of the task's own gradient, then the method's correction of it, then the optimizer. So
what a method adds (a control variate, a proximal term) is added exactly.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from federation.algorithms.client import Step
from federation.algorithms.vector import Vector
from federation.training.modes import array_of
from federation.training.passes import Means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from federation.training.objective import Objective
    from federation.training.optimizers import Optimizer
    from federation.training.passes import Group
    from federation.training.placement import Placement
    from federation.training.plain_layers import PlainLayers


class Stepper:
    """Takes the steps of one run.

    Args:
        model: on its device.
        objective: its loss and metrics.
        optimizer: moves it.
        max_norm: the task's gradient is scaled down to this L2 norm; None: never.
        layers: a short way to the gradients of cross-entropy; None: there is none, or the loss is another.

    Attributes:
        means: metrics of the steps taken.
        rates: learning rate of each step taken.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        max_norm: float | None,
        layers: PlainLayers | None = None,
    ) -> None:
        self._layers = layers
        self.means = Means()
        self.rates: list[float] = []
        self._model = model
        self._objective = objective
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._watch: Callable[[float], None] | None = None

    def watch(self, look: Callable[[float], None]) -> None:
        """Have `look` called with the learning rate between each backward pass and its step."""
        self._watch = look

    def step(self, k: int, group: Group) -> None:
        """Take step k on one group."""
        optimizer, objective = self._optimizer, self._objective
        optimizer.zero_grad(set_to_none=True)
        for samples, targets in group.batches:
            sample, target = objective.sample(samples), objective.target(targets)
            loss, output = self._go_back(sample, target, len(target) / group.examples)
            self.means.add(len(target), objective.measure(loss, output, target))
        if self._max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_norm)
        rate = float(optimizer.param_groups[0]["lr"])
        self.rates.append(rate)
        if self._watch is not None:
            self._watch(rate)
        optimizer.step()

    def _go_back(self, sample: torch.Tensor, target: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of a batch's share of the mean loss; returns the batch's own loss, and the output."""
        objective, layers = self._objective, self._layers
        is_plain = layers is not None and share == 1.0 and layers.takes(self._model, sample, target)
        if layers is not None and is_plain and layers.is_proven(len(target)):
            return layers.go_back(sample, target)
        output = objective.output(self._model(sample))
        loss = objective.loss(output, target)
        go_back(loss if share == 1.0 else loss * share)
        if layers is not None and is_plain:
            layers.prove(sample, target)
        return loss, output


def go_back(loss: torch.Tensor) -> None:
    """Add the gradients of a loss to those of its parameters: ``loss.backward()``, to the bit.

    Of a small model's backward pass a seventh of the time goes by before it begins: into looking for what a plain loss
    on the CPU has not. Such a one is handed to the engine as it is, any other takes torch's own way.
    """
    if type(loss) is not torch.Tensor or loss.device.type != "cpu" or loss.dim() or not loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        return
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


class GradientWatch:
    """Shows gradients to a method as arrays: what it writes into them is what the optimizer gets.

    On another device than the CPU the model comes home meanwhile, so that the method sees parameters and gradients in
    memory it can write.

    Args:
        model: whose gradients.
        tensors: the federated trained tensors.
        parameters: the same, as live arrays.
        device: where the model is.
        correct: the method's hook; None if gradients are only summed.
        sums: whether `mean` is asked for.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tensors: Mapping[str, torch.nn.Parameter],
        parameters: Vector,
        device: Placement,
        correct: Callable[[Step], None] | None,
        *,
        sums: bool,
    ) -> None:
        self._model = model
        self._tensors = tensors
        self._parameters = parameters
        self._device = device
        self._correct = correct
        self._sums = sums
        self._sum: Vector | None = None
        self._summed = 0
        self._k = 0

    def look(self, rate: float) -> None:
        """Show the gradients of the present step."""
        with self._shown() as gradients:
            if self._correct is not None:
                self._correct(Step(k=self._k, parameters=self._parameters, gradients=gradients, learning_rate=rate))
            if self._sums:
                self._add(gradients)
        self._k += 1

    def mean(self) -> Vector:
        """Return the mean gradient since this was last asked."""
        if self._sum is None:
            raise RuntimeError("there is no mean before a step")
        mean, self._sum, self._summed = self._sum / self._summed, None, 0
        return mean

    def _add(self, gradients: Vector) -> None:
        if self._sum is None:
            self._sum = gradients.copy()
        else:
            self._sum += gradients
        self._summed += 1

    @contextmanager
    def _shown(self) -> Iterator[Vector]:
        tensors = self._tensors
        missing = [tensor for tensor in tensors.values() if tensor.grad is None]
        grads = [_dense(tensor) for tensor in tensors.values()]
        if self._device.is_elsewhere:
            with self._at_home(grads) as shown:
                yield shown
        else:
            for tensor, grad in zip(tensors.values(), grads, strict=True):
                tensor.grad = grad if tensor.requires_grad else None
            yield Vector({name: array_of(grad) for name, grad in zip(tensors, grads, strict=True)})
        for tensor in missing:
            # Weight decay and momentum leave a parameter without gradient alone: one nobody wrote stays without.
            if tensor.grad is not None and not tensor.grad.any():
                tensor.grad = None

    @contextmanager
    def _at_home(self, grads: list[torch.Tensor]) -> Iterator[Vector]:
        home = [grad.cpu() for grad in grads]
        others = {each: each.grad for each in self._model.parameters() if each.grad is not None}
        for parameter in others:
            parameter.grad = None
        with self._device.left():
            yield Vector({name: array_of(grad) for name, grad in zip(self._tensors, home, strict=True)})
        for parameter, other in others.items():
            parameter.grad = other
        for tensor, grad in zip(self._tensors.values(), home, strict=True):
            tensor.grad = grad.to(tensor.device) if tensor.requires_grad else None


def _dense(tensor: torch.nn.Parameter) -> torch.Tensor:
    if tensor.grad is None:
        return torch.zeros_like(tensor)
    return tensor.grad.to_dense().contiguous() if tensor.grad.is_sparse else tensor.grad.contiguous()
