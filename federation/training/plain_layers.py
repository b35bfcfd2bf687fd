"""Gradients of small models of torch's own layers, without torch's graph. Imports torch.

A small model spends half of a step on the graph of it: a node for each operation is made, linked, queued and taken
apart. Where forward and backward pass are known beforehand the same operations can simply be called in their order.

Rules, in order:

1. It is for an ``nn.Sequential`` of `Linear` with bias and `ReLU`, after a `Flatten` or none, of float32 or float64 on
   the CPU, all of it trained, with the mean cross-entropy; of these very classes, not of theirs that derive from them.
   Larger models than `MOST_ELEMENTS` have nothing to win.
2. Everything that could have a say is looked at before each step: hooks, a forward pass of an instance's own,
   parametrised, shared, frozen or added parameters, gradients that are to be added to, autocast, anomaly detection,
   hooks on what a graph keeps, modes that catch operations. If there is anything, or a batch is not what the first
   layer takes, the step goes torch's own way, with torch's own errors.
3. The operations are those that torch's derivative formulas name, on operands of the same layout, so the gradients are
   the same to the bit. (Layers of one input are left out: there a batch of one has two layouts, and the formula two
   forms.) That is not taken on trust: the first `PROOFS` batches of each size go torch's way, and this one is taken for
   that size from then on if each gave the same bytes. Should another release of torch compute otherwise, nothing
   changes but the time.

It leaves gradients in ``.grad`` as a backward pass does; whatever reads or changes them there, clipping, a method's
correction, any optimizer, finds them. What it does not see is a hook on the graph's own nodes (`AccumulateGrad`).
"""

from __future__ import annotations

from operator import is_not
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.modules import module as modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_ELEMENTS = 1 << 18
"""Of all parameters together: above it arithmetic takes so long that the graph does not count."""
PROOFS = 3
"""Batches of a size that are compared: of a tiny one another order of sums may show in the second only."""
_DTYPES = (torch.float32, torch.float64)
_MEAN, _NO_CLASS = 1, -100
_REFUTED = -1
# Releases that cannot say let such hooks go unseen.
_hooks_on_what_is_kept: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
_linear = torch.nn.functional.linear
_nll_loss = torch.ops.aten.nll_loss_forward.default
_nll_loss_back = torch.ops.aten.nll_loss_backward.default
_log_softmax_back = torch.ops.aten._log_softmax_backward_data.default
_relu_back = torch.ops.aten.threshold_backward.default


class _Found(NamedTuple):
    """What a batch gives: mean loss, output of the model, and a gradient for each parameter, in their order."""

    loss: torch.Tensor
    output: torch.Tensor
    gradients: Sequence[torch.Tensor]


class PlainLayers:
    """The way through one model, back and forth; made by `of`, and holds as long as the model's structure is current.

    Args:
        layers: of a model of the kind of rule 1, in their order. The model itself is not held.
    """

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        self._layers = list(layers)
        self._kinds = [type(each) for each in layers]
        self._is_flattened = self._kinds[0] is torch.nn.Flatten
        self._linear = [each for each in layers if isinstance(each, torch.nn.Linear)]
        self._parameters: list[Any] = [part for each in self._linear for part in (each.weight, each.bias)]
        steps = self._layers[self._is_flattened :]
        self._steps = [(each.weight, each.bias) if isinstance(each, torch.nn.Linear) else None for each in steps]
        self._dtype = self._parameters[0].dtype
        self._width = int(self._parameters[0].shape[1])
        self._one = torch.ones((), dtype=self._dtype)
        self._left: dict[int, int] = {}

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]:
        """All parameters, in the model's order."""
        return self._parameters

    @classmethod
    def of(cls, model: torch.nn.Module, parameters: Iterable[torch.nn.Parameter]) -> PlainLayers | None:
        """Return the way through a model, if it is of the kind of rule 1.

        Args:
            model: any.
            parameters: all it has, each once.
        """
        if type(model) is not torch.nn.Sequential:
            return None
        layers, found = list(model), list(parameters)
        inner = layers[1:] if layers and type(layers[0]) is torch.nn.Flatten else layers
        if any(type(each) not in (torch.nn.Linear, torch.nn.ReLU) for each in inner):
            return None
        expected = [part for each in inner if type(each) is torch.nn.Linear for part in (each.weight, each.bias)]
        # Fewer are found where layers share some or have no bias, more where some were added.
        if not expected or len(found) != len(expected) or any(map(is_not, found, expected)):
            return None
        if any(type(each) is not torch.nn.Parameter for each in found):
            return None
        is_small = sum(each.numel() for each in found) <= MOST_ELEMENTS
        has_one_form = all(each.shape[1] > 1 for each in found[::2])
        return cls(layers) if is_small and has_one_form and found[0].dtype in _DTYPES else None

    def takes(self, model: torch.nn.Module, sample: torch.Tensor, target: torch.Tensor) -> bool:
        """Tell whether a batch may come this way, now (rule 2)."""
        return self.draws_nothing(model) and self._are_plain_parameters() and self._fits(sample, target)

    def draws_nothing(self, model: torch.nn.Module) -> bool:
        """Tell whether a step runs nothing but these layers, which draw no random numbers: nothing else has a say."""
        return not _is_watched() and self._is_untouched(model)

    def forget_gradients(self) -> None:
        """Drop every gradient; `takes` wants none."""
        for parameter in self._parameters:
            parameter.grad = None

    def is_proven(self, examples: int) -> bool:
        """Tell whether batches of this size gave the bytes that torch's own way gives (rule 3)."""
        return self._left.get(examples, PROOFS) == 0

    def prove(self, sample: torch.Tensor, target: torch.Tensor) -> None:
        """Compare with what a backward pass for a batch that this takes has left, until its size is proven or not."""
        left = self._left.setdefault(len(target), PROOFS)
        if left <= 0:
            return
        own = self._differentiate(sample, target).gradients
        found = [parameter.grad for parameter in self._parameters]
        self._left[len(target)] = left - 1 if all(map(_are_same, own, found)) else _REFUTED

    def go_back(self, sample: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave the gradients of a batch's mean loss in ``.grad``; returns the loss and the model's output."""
        found = self._differentiate(sample, target)
        for gradient, parameter in zip(found.gradients, self._parameters, strict=True):
            parameter.grad = gradient
        return found.loss, found.output

    def _differentiate(self, sample: torch.Tensor, target: torch.Tensor) -> _Found:
        with torch.no_grad():
            value = sample.flatten(1) if self._is_flattened else sample
            values = [value]
            for step in self._steps:
                value = torch.relu(value) if step is None else _linear(value, step[0], step[1])
                values.append(value)
            logarithms = torch.log_softmax(value, 1)
            loss, weight = _nll_loss(logarithms, target, None, _MEAN, _NO_CLASS)
            back = _nll_loss_back(self._one, logarithms, target, None, _MEAN, _NO_CLASS, weight)
            return _Found(loss, value, self._go_through(values, _log_softmax_back(back, logarithms, 1, self._dtype)))

    def _go_through(self, values: list[torch.Tensor], back: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradient of each parameter, given what went into each step, the output, and its gradient."""
        gradients: list[torch.Tensor] = []
        for step in reversed(self._steps):
            after = values.pop()
            if step is None:
                back = _relu_back(back, after, 0)
                continue
            gradients += (back.sum((0,)), back.t().mm(values[-1]))
            if len(gradients) == len(self._parameters):
                break  # nobody asks for the gradient of a sample
            back = back.mm(step[0])
        gradients.reverse()
        return gradients

    def _is_untouched(self, model: torch.nn.Module) -> bool:
        """Tell whether the modules are as they were found, and nothing hangs on them."""
        layers = self._layers
        if list(model._modules.values()) != layers or list(map(type, layers)) != self._kinds:
            return False
        for each in (model, *layers):
            own = each.__dict__
            if (
                own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or own["_backward_hooks"]
                or own["_backward_pre_hooks"]
            ):
                return False
            if "forward" in own or "_compiled_call_impl" in own:
                return False
        first: Any = layers[0]
        return not self._is_flattened or (first.start_dim == 1 and first.end_dim == -1)

    def _are_plain_parameters(self) -> bool:
        """Tell whether the parameters are as they were found, and nothing hangs on them."""
        held = [part for each in self._linear for part in each._parameters.values()]
        if len(held) != len(self._parameters) or any(map(is_not, held, self._parameters)):
            return False
        dtype = self._dtype
        for part in self._parameters:
            if part.grad is not None or part._backward_hooks or part._post_accumulate_grad_hooks:
                return False
            if not (part.requires_grad and part.is_cpu and part.dtype is dtype and part.is_contiguous()):
                return False
        return True

    def _fits(self, sample: torch.Tensor, target: torch.Tensor) -> bool:
        shape = sample.shape
        return (
            type(sample) is type(target) is torch.Tensor
            and sample.dtype is self._dtype
            and target.dtype is torch.int64
            and sample.is_cpu
            and target.is_cpu
            and sample.is_contiguous()
            and not sample.requires_grad
            and (len(shape) == 2 or (self._is_flattened and len(shape) > 2))
            and target.dim() == 1
            and 0 < shape[0] == target.shape[0]
            and sample.numel() == shape[0] * self._width
        )


def _is_watched() -> bool:
    """Tell whether anything else than a step's own operations is to happen, in this thread or to any module."""
    return bool(
        not torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.is_anomaly_enabled()
        or _hooks_on_what_is_kept(True) is not None
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or modules._has_any_global_hook()  # type: ignore[no-untyped-call]  # torch's stub
    )


def _are_same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
