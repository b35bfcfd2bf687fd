"""torch's SGD without options, w ← w − η g, as one call for all tensors, and with momentum. Imports torch.

The operations are those of ``torch.optim.SGD``, so the result is the same to the bit. What is left out is what a step
of a small model spends most of its time on, hooks, a profiler's record and a group of options that are all off; and
torch's compiler, which an optimizer of torch's imports when it is made: that takes as long as torch itself.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from collections.abc import Sequence


class PlainSgd:
    """Implements `federation.training.optimizers.Optimizer`; has no state.

    Args:
        parameters: what it moves.
        lr: η.

    Raises:
        ValueError: no parameters, or a negative step size.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], lr: float) -> None:
        if not parameters or lr < 0:
            raise ValueError(f"{len(parameters)} parameters to move at a learning rate of {lr}")
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": lr}]
        self.state: defaultdict[torch.nn.Parameter, dict[str, Any]] = defaultdict(dict)
        self._parameters = parameters

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop every gradient."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moved: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        for parameter in self._parameters:
            if (gradient := parameter.grad) is not None:
                moved.append(parameter.data)  # nothing is recorded of what is done to it
                gradients.append(gradient)
        if moved:
            torch._foreach_add_(moved, gradients, alpha=-self.param_groups[0]["lr"])


class MomentumSgd(PlainSgd):
    """SGD with momentum: b ← μ b + g, w ← w − η b; the first b is the first g. Its state is ``momentum_buffer``, b.

    Args:
        parameters: what it moves.
        lr: η.
        momentum: μ.

    Raises:
        ValueError: no parameters, or a negative step size or momentum.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], lr: float, momentum: float) -> None:
        if momentum < 0:
            raise ValueError(f"momentum must not be negative, got {momentum}")
        super().__init__(parameters, lr)
        self._momentum = momentum

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moved = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        buffers = [self.state[parameter].get("momentum_buffer") for parameter in moved]
        sgd(
            list[torch.Tensor](moved),
            gradients,
            buffers,
            has_sparse_grad=any(gradient.is_sparse for gradient in gradients),
            weight_decay=0.0,
            momentum=self._momentum,
            lr=self.param_groups[0]["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for parameter, buffer in zip(moved, buffers, strict=True):
            self.state[parameter]["momentum_buffer"] = buffer
