"""Models as named arrays, whatever they are made of.

Rules, in order:

1. An adapter gives live views: writing into `ModelAdapter.arrays` writes into the model. So a model is loaded and read
   without a second copy of it in memory.
2. A torch model's tensors are its parameters and its persistent buffers, by their dotted names; tied parameters count
   once. bfloat16 tensors are seen through their bits.
3. In a dictionary of arrays, floats are trained, everything else is a buffer.
4. A task may change values, never names, dtypes or shapes; where it did, the adapter says which.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from federation.errors import PlanError
from federation.tensors import DType
from federation.training.structure import Structure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.tensors.buffers import Array


class Kind(Enum):
    """What a tensor is to its model: TRAINED parameter, FROZEN parameter, or BUFFER."""

    TRAINED = "trained"
    FROZEN = "frozen"
    BUFFER = "buffer"


class ModelAdapter(Protocol):
    """A model as named arrays.

    Attributes:
        model: what the task is handed.
        kinds: what each tensor is, by name; fixed when the adapter is made.
    """

    model: Any
    kinds: dict[str, Kind]

    def arrays(self) -> dict[str, Array]:
        """Return a live, writable, C-contiguous view of each tensor.

        Raises:
            PlanError: a tensor is gone, new, or has another dtype or shape than when the adapter was made.
        """
        ...


def adapt(model: Any) -> ModelAdapter:
    """Return the adapter for a model.

    Raises:
        PlanError: it is neither an ``nn.Module`` nor a dictionary of arrays, or has a tensor that cannot be federated.
    """
    if isinstance(model, dict):
        return ArrayModel(model)
    if "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module):
        return TorchModel(model)
    raise PlanError(
        f"the model is a {type(model).__name__}; expected a torch.nn.Module or a dictionary of NumPy arrays"
    )


class ArrayModel:
    """A dictionary from names to NumPy arrays."""

    def __init__(self, model: dict[str, Array]) -> None:
        self.model = model
        self.kinds: dict[str, Kind] = {}
        for name, value in model.items():
            _check_entry(name, value)
            self.kinds[name] = Kind.TRAINED if _dtype(name, value).is_float else Kind.BUFFER
        self._shapes = {name: (value.dtype, value.shape) for name, value in model.items()}

    def arrays(self) -> dict[str, Array]:
        """See `ModelAdapter.arrays`. A task may rebind an entry; what it bound is what is read."""
        if self.model.keys() != self._shapes.keys():
            changed = sorted(self.model.keys() ^ self._shapes.keys())
            raise PlanError(f"the task added or removed model entries {changed[:5]}; it may only change their values")
        for name, value in self.model.items():
            _check_entry(name, value)
            if (value.dtype, value.shape) != self._shapes[name]:
                _refuse_change(name, self._shapes[name], (value.dtype, value.shape))
            if not (value.flags.c_contiguous and value.flags.writeable):
                self.model[name] = np.array(value, order="C")
        return dict(self.model)


class TorchModel:
    """A ``torch.nn.Module`` on the CPU; a task that computes elsewhere brings it back or lets the adapter do so."""

    def __init__(self, model: Any) -> None:
        import torch

        self._torch = torch
        self.model = model
        self._found: _Found | None = None
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if isinstance(tensor, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)):
                raise PlanError(f"tensor {name!r} of the model has no shape yet; run the model once on a sample")
            if tensor.is_meta or tensor.layout is not torch.strided:
                raise PlanError(f"tensor {name!r} of the model is {tensor.layout} on {tensor.device}; make it dense")
        self.kinds = {name: self._kind(tensor) for name, tensor in self._tensors().items()}
        self._shapes = {name: (array.dtype, array.shape) for name, array in self._views().items()}

    def arrays(self) -> dict[str, Array]:
        """See `ModelAdapter.arrays`."""
        if self._found is not None and self._found.is_current():
            return dict(self._found.views)
        self._found = None
        views = self._views()
        if views.keys() != self._shapes.keys():
            changed = sorted(views.keys() ^ self._shapes.keys())
            raise PlanError(f"the task added or removed tensors {changed[:5]}; it may only change their values")
        for name, view in views.items():
            if (view.dtype, view.shape) != self._shapes[name]:
                _refuse_change(name, self._shapes[name], (view.dtype, view.shape))
        self._found = _Found(self.model, self._tensors(), views)
        return views

    def _tensors(self) -> dict[str, Any]:
        persistent = self.model.state_dict(keep_vars=True).keys()
        named = dict(self.model.named_parameters())
        named.update((name, tensor) for name, tensor in self.model.named_buffers() if name in persistent)
        return named

    def _kind(self, tensor: Any) -> Kind:
        if not isinstance(tensor, self._torch.nn.Parameter):
            return Kind.BUFFER
        return Kind.TRAINED if tensor.requires_grad else Kind.FROZEN

    def _views(self) -> dict[str, Array]:
        tensors = self._tensors()
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):
            self.model.to("cpu")
            tensors = self._tensors()
        return {name: self._view(name, tensor) for name, tensor in tensors.items()}

    def _view(self, name: str, tensor: Any) -> Array:
        if not tensor.is_contiguous():
            tensor.data = tensor.data.contiguous()
        data = tensor.detach()
        try:
            if data.dtype is self._torch.bfloat16:
                view: Array = data.view(self._torch.int16).numpy().view(DType.BFLOAT16.numpy)
            else:
                view = data.numpy()
        except TypeError as error:
            raise PlanError(
                f"tensor {name!r} of the model has dtype {data.dtype}, which cannot be federated"
            ) from error
        _dtype(name, view)
        return view


class _Found:
    """Views that were found, and what shows quickly that a model still has the tensors they are of.

    Args:
        model: the module.
        tensors: its tensors, by name.
        views: of them.
    """

    def __init__(self, model: Any, tensors: Mapping[str, Any], views: dict[str, Array]) -> None:
        self.views = views
        self._structure = Structure(model)
        self._tensors = list(tensors.values())
        self._places = self._look()

    def is_current(self) -> bool:
        """Tell whether every module holds the same tensors and modules, and every tensor the same memory."""
        return self._structure.is_current() and self._look() == self._places

    def _look(self) -> list[tuple[Any, ...]]:
        return [(each.data_ptr(), each.dtype, each.shape, each.stride()) for each in self._tensors]


def _check_entry(name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, np.ndarray):
        raise PlanError(f"model entry {name!r} is a {type(value).__name__}; expected a NumPy array under a name")


def _dtype(name: str, array: Array) -> DType:
    try:
        return DType.of(array.dtype)
    except ValueError as error:
        raise PlanError(f"tensor {name!r} of the model: {error}") from error


def _refuse_change(name: str, expected: tuple[object, ...], got: tuple[object, ...]) -> None:
    raise PlanError(
        f"the task changed tensor {name!r} from {expected[0]}{expected[1]} to {got[0]}{got[1]}; "
        "it may only change values: write into the array, or keep dtype and shape"
    )
