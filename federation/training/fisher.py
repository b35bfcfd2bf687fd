"""The diagonal of the empirical Fisher information: mean over examples of squared per-example gradients. Imports torch.

Per-example gradients of a batch come from one vectorised pass (``torch.func``); a model that cannot be vectorised is
asked example by example. The model is in evaluation mode: batch normalisation of one example has no meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from federation.training.objective import Objective

Tensors = dict[str, torch.Tensor]


def mean_squares(
    model: torch.nn.Module,
    objective: Objective,
    parameters: Mapping[str, torch.Tensor],
    batches: Iterable[tuple[Any, Any]],
    examples: int,
) -> Tensors:
    """Return (1/n) Σ_j (∇ℓ_j)², elementwise.

    Args:
        model: on its device.
        objective: gives the loss ℓ_j of an example.
        parameters: tensors of the model to differentiate by.
        batches: all examples, in batches that fit in memory once per example.
        examples: n.
    """
    model.eval()
    total = _zeros(parameters)
    is_vectorised = True
    for samples, targets in batches:
        sample, target = objective.sample(samples), torch.as_tensor(targets).to(next(model.parameters()).device)
        squares: Tensors | None = None
        if is_vectorised:
            try:
                squares = _vectorised(model, objective, parameters, sample, target)
            except (RuntimeError, ValueError, NotImplementedError, TypeError):
                is_vectorised = False  # in-place operations, data-dependent branches: what vmap cannot follow
        if squares is None:
            squares = _one_by_one(model, objective, parameters, sample, target)
        for name, square in squares.items():
            total[name] += square / examples
    return total


def _vectorised(
    model: torch.nn.Module,
    objective: Objective,
    parameters: Mapping[str, torch.Tensor],
    samples: torch.Tensor,
    targets: torch.Tensor,
) -> Tensors:
    fixed: Tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    fixed.update(model.named_buffers())

    def loss_of(chosen: Tensors, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(model, {**fixed, **chosen}, (sample.unsqueeze(0),))
        return objective.loss(objective.output(output), target.unsqueeze(0))

    chosen = {name: tensor.detach() for name, tensor in parameters.items()}
    gradients = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(chosen, samples, targets)
    return {name: gradient.to(wide(gradient.dtype)).square().sum(0) for name, gradient in gradients.items()}


def _one_by_one(
    model: torch.nn.Module,
    objective: Objective,
    parameters: Mapping[str, torch.Tensor],
    samples: torch.Tensor,
    targets: torch.Tensor,
) -> Tensors:
    squares = _zeros(parameters)
    for place in range(len(samples)):
        output = objective.output(model(samples[place : place + 1]))
        loss = objective.loss(output, targets[place : place + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for square, gradient in zip(squares.values(), gradients, strict=True):
            if gradient is not None:
                square += gradient.to(square.dtype).square()
    return squares


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what sums and squares of such gradients are made in: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _zeros(parameters: Mapping[str, torch.Tensor]) -> Tensors:
    return {
        name: torch.zeros_like(tensor, dtype=wide(tensor.dtype), requires_grad=False)
        for name, tensor in parameters.items()
    }
