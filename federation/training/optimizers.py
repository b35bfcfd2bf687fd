"""Local torch optimizers by name, and their state as named arrays.

Everything an optimizer holds per parameter is its state, by ``<parameter>/<key>``; hyper-parameters such as the
learning rate come from plan and task each round. Floats (Adam's moments and its step count, which torch holds as
float32) are averaged if the plan aggregates them; integers are combined by maximum.

torch is imported when the first optimizer is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from federation.errors import PlanError
from federation.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from federation.tensors.buffers import Array

OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "nadam": "NAdam",
    "radam": "RAdam",
    "adamax": "Adamax",
    "adadelta": "Adadelta",
    "rprop": "Rprop",
    "asgd": "ASGD",
}


class Optimizer(Protocol):
    """What a local run needs of an optimizer; torch's have it.

    Attributes:
        param_groups: of the first, ``lr`` is the step size.
        state: what it holds, by parameter and key.
    """

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> Any:
        """What it holds."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        ...

    def step(self) -> Any:
        """Move the parameters along their gradients."""
        ...


def make_optimizer(
    name: str, parameters: Sequence[torch.nn.Parameter], learning_rate: float, options: Mapping[str, Any]
) -> Optimizer:
    """Return an optimizer of torch's, or one that does the same.

    Args:
        name: a key of `OPTIMIZERS`.
        parameters: what it moves.
        learning_rate: its step size.
        options: its further arguments.

    Raises:
        PlanError: no such optimizer, or it does not take these options.
    """
    if name not in OPTIMIZERS:
        raise PlanError(f"there is no optimizer {name!r}, only {', '.join(OPTIMIZERS)}")
    make = _class_of(name, options)
    try:
        made = make(parameters, lr=learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise PlanError(f"optimizer {name!r} does not take {dict(options)}: {error}") from error
    return made


def _class_of(name: str, options: Mapping[str, Any]) -> Callable[..., Optimizer]:
    if name == "sgd" and not options:
        from federation.training.plain_sgd import PlainSgd

        return PlainSgd
    import torch

    from federation.training.uncompiled import without_compiler

    own: Callable[..., Optimizer] = getattr(torch.optim, OPTIMIZERS[name])
    return own if options.get("differentiable") else without_compiler(own)


def state_of(optimizer: Optimizer, model: torch.nn.Module) -> dict[str, Array]:
    """Return an optimizer's state by ``<parameter>/<key>``, in arrays of their own."""
    state: dict[str, Array] = {}
    if not optimizer.state:
        return state
    import torch

    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensor = value.detach().cpu().contiguous()
                bits = tensor.dtype is torch.bfloat16
                array = tensor.view(torch.int16).numpy().view(DType.BFLOAT16.numpy) if bits else tensor.numpy()
                state[f"{name}/{key}"] = np.array(array)
            elif isinstance(value, int | float):
                state[f"{name}/{key}"] = np.asarray(value)
    return state


def restore_state(optimizer: Optimizer, model: torch.nn.Module, state: Mapping[str, Array]) -> None:
    """Give an optimizer state back; entries of parameters that are not trained are left out."""
    if not state:
        return
    import torch

    names = dict(model.named_parameters())
    for key, array in state.items():
        name, _, what = key.rpartition("/")
        parameter = names.get(name)
        if parameter is None or not parameter.requires_grad:
            continue
        value: Any
        if array.dtype == DType.BFLOAT16.numpy:
            value = torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
        elif array.ndim == 0 and array.dtype != np.float32:  # a plain number: torch's own counters are float32 tensors
            value = array.item()
        else:
            value = torch.from_numpy(np.array(array))
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            value = value.to(parameter.device)
        optimizer.state[parameter][what] = value
