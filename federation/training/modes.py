"""What a torch model is while it is worked on: its modes, what is frozen, its tensors as arrays. Imports torch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from federation.tensors import DType
from federation.training.seeding import streams_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.tensors.buffers import Array
    from federation.training.structure import Structure


def batch_norm_of(model: torch.nn.Module) -> frozenset[str]:
    """Return the names of the tensors of batch normalisation, statistics included."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for name in (*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False)))
    )


def train_mode(model: torch.nn.Module, structure: Structure) -> None:
    """Put a model into training mode, but for the parts in which every parameter is frozen."""
    structure.put_into_mode(model, _train)


def _train(model: torch.nn.Module) -> None:
    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@contextmanager
def frozen(structure: Structure, only: Callable[[str], bool] | None) -> Iterator[None]:
    """Freeze the trained tensors that `only` does not name, for the block."""
    named = structure.parameters if only is not None else {}
    still = [tensor for name, tensor in named.items() if tensor.requires_grad and only is not None and not only(name)]
    for tensor in still:
        tensor.requires_grad_(False)
        tensor.grad = None
    try:
        yield
    finally:
        for tensor in still:
            tensor.requires_grad_(True)


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Give buffers and torch's random streams back as they were."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with streams_kept():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def array_of(tensor: torch.Tensor) -> Array:
    """Return a live view of a tensor on the CPU; bfloat16 is seen through its bits."""
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        view: Array = tensor.view(torch.int16).numpy().view(DType.BFLOAT16.numpy)
        return view
    array: Array = tensor.numpy()
    return array
