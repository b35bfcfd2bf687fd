"""What a supervised task was told, as its parts read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from federation.algorithms.client import OptimizerChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

Loss: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
Metric: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], float]"
OptimizerFactory: TypeAlias = "Callable[[list[torch.nn.Parameter], float], torch.optim.Optimizer]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a `SupervisedTask` was told; its arguments, checked, with metrics by name."""

    loss: str | Loss
    optimizer: str | OptimizerFactory
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int
    evaluation_batch_size: int
    metrics: Mapping[str, str | Metric]
    max_gradient_norm: float | None
    device: str

    @property
    def is_named(self) -> bool:
        """Whether nothing in it is the author's own code."""
        return all(isinstance(each, str) for each in (self.loss, self.optimizer, *self.metrics.values()))

    @property
    def optimizer_choice(self) -> OptimizerChoice:
        """The optimizer as algorithms see it; a factory of the author's goes by its name."""
        name = self.optimizer
        if not isinstance(name, str):
            return OptimizerChoice(name=getattr(name, "__name__", type(name).__name__))
        return OptimizerChoice(name=name, options=self.optimizer_options)
