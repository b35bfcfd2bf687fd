"""torch's SGD without options, w ← w − η g, as one call for all tensors. Imports torch.

The operations are those of ``torch.optim.SGD``, so the result is the same to the bit. What is left out is what a step
of a small model spends most of its time on: hooks, a profiler's record and a group of options that are all off.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

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
