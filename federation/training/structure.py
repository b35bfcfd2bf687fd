"""What a torch module is made of, looked through once: `Structure`, and `Structures` of several.

Walking through a small model takes longer than training it for a batch, and a model is trained thousands of times. So
its parameters and modules are listed once, and before each use it is only asked whether the module still holds the very
same ones. The module itself is not held: who keeps structures by module does not keep modules alive.
"""

from __future__ import annotations

from itertools import chain
from operator import is_, methodcaller
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from federation.training.plain_layers import PlainLayers

_values = methodcaller("values")


class Structure:
    """The parts of a module as they were found.

    Args:
        model: the module.

    Attributes:
        parameters: every parameter by its dotted name, tied ones once.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        import torch

        modules = list(model.modules())
        parts = [part for each in modules for part in (each._parameters, each._buffers, each._modules)]
        self.parameters: dict[str, torch.nn.Parameter] = dict(model.named_parameters())
        self._below = modules[1:]
        self._parts: list[dict[str, Any]] = parts
        self._sizes = list(map(len, parts))
        self._filled = [part for part in parts if part]
        self._held = [held for part in self._filled for held in part.values()]
        # An author's own `train` may do anything; torch's does the same to the same modes.
        self._sets_modes_itself = any(type(each).train is not torch.nn.Module.train for each in modules)
        self._modes: list[bool] | None = None
        self._plain_layers: list[PlainLayers | None] = []

    def is_current(self) -> bool:
        """Tell whether every module still holds the same parameters, buffers and modules."""
        if list(map(len, self._parts)) != self._sizes:
            return False
        return all(map(is_, chain.from_iterable(map(_values, self._filled)), self._held))

    def trained(self) -> list[torch.nn.Parameter]:
        """Return the parameters that are trained now."""
        return [parameter for parameter in self.parameters.values() if parameter.requires_grad]

    def put_into_mode(self, model: torch.nn.Module, put: Callable[[torch.nn.Module], None]) -> None:
        """Have `put` choose the mode of every part of the module, unless all are as it left them and as frozen.

        Args:
            model: whose structure this is.
            put: decides by nothing but which parameters are frozen; the same at every call.
        """
        if self._sets_modes_itself or self._modes != self._modes_of(model):
            put(model)
            self._modes = self._modes_of(model)

    def plain_layers(self, model: torch.nn.Module) -> PlainLayers | None:
        """Return the short way through the module, whose structure this is, if it is made for one."""
        if not self._plain_layers:
            from federation.training.plain_layers import PlainLayers

            self._plain_layers.append(PlainLayers.of(model, self.parameters.values()))
        return self._plain_layers[0]

    def _modes_of(self, model: torch.nn.Module) -> list[bool]:
        return [
            model.training,
            *[each.training for each in self._below],
            *[parameter.requires_grad for parameter in self.parameters.values()],
        ]


class Structures:
    """Structures by module, each for as long as its module lives. A copy of it, or what is pickled, begins empty."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[torch.nn.Module, Structure] = WeakKeyDictionary()

    def of(self, model: torch.nn.Module) -> Structure:
        """Return the structure a module has now."""
        known = self._known.get(model)
        if known is None or not known.is_current():
            known = self._known[model] = Structure(model)
        return known

    def known(self, model: torch.nn.Module) -> Structure | None:
        """Return the structure a module had when it was last looked at."""
        return self._known.get(model)

    def __reduce__(self) -> tuple[type[Structures], tuple[()]]:
        return Structures, ()
