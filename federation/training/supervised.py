"""The ready-made task: supervised training of a torch model with a loss, an optimizer and batches.

Rules, in order:

1. The same (seed, round, site) gives the same batches, the same dropout and, on one machine type and torch build, the
   same update. Shuffles come from a generator of their own; torch's is seeded for what draws from it.
2. A metric of a pass is the mean over examples. The loss is always reported, as ``loss``.
3. A part of the model in which every parameter is frozen runs in evaluation mode also while training: a frozen
   backbone's batch-norm statistics stay as they were delivered, and its dropout is off.
4. Samples are handed over in the dtype of the model's parameters; losses and metrics of half-precision outputs are
   computed in float32.
5. Everything the optimizer holds per parameter is its state, by ``<parameter>/<key>``; hyper-parameters such as the
   learning rate come from plan and task each round. Floats (Adam's moments and its step count, which torch holds as
   float32) are averaged if the plan aggregates them; integers are combined by maximum.

torch is imported when the task first works, not when it is defined.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from federation.errors import PlanError
from federation.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from federation.data.local import LocalData
    from federation.tensors.buffers import Array
    from federation.training.context import RoundContext

Loss: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
Metric: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], float]"
OptimizerFactory: TypeAlias = "Callable[[list[torch.nn.Parameter], float], torch.optim.Optimizer]"

LOSSES = ("cross_entropy", "bce_with_logits", "mse", "l1")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "adagrad": "Adagrad"}
METRICS = ("accuracy", "mean_absolute_error", "mean_squared_error")


class SupervisedTask:
    """Train and evaluate an ``nn.Module`` on pairs of samples and targets.

    Args:
        loss: ``"cross_entropy"`` (targets: class numbers), ``"bce_with_logits"`` (targets: 0 or 1), ``"mse"``,
            ``"l1"``, or a callable (output, target) -> mean over the batch.
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``, ``"rmsprop"``, ``"adagrad"``, or a callable
            (parameters, learning_rate) -> torch optimizer.
        optimizer_options: further arguments of a named optimizer, such as ``{"momentum": 0.9}``.
        batch_size: examples per step.
        evaluation_batch_size: examples per batch of an evaluation.
        metrics: beside the loss: ``"accuracy"``, ``"mean_absolute_error"``, ``"mean_squared_error"``, or callables
            (output, target) -> mean over the batch, reported under their ``__name__``.
        max_gradient_norm: gradients are scaled down to this L2 norm. None: never.
        device: where to compute, such as ``"cuda"``; the model comes back to the CPU after each pass.

    Raises:
        PlanError: an unknown name, or a size below 1.
    """

    def __init__(
        self,
        loss: str | Loss = "cross_entropy",
        optimizer: str | OptimizerFactory = "sgd",
        *,
        batch_size: int = 32,
        metrics: Sequence[str | Metric] = (),
        optimizer_options: Mapping[str, Any] | None = None,
        evaluation_batch_size: int = 256,
        max_gradient_norm: float | None = None,
        device: str = "cpu",
    ) -> None:
        _check_choice(loss, LOSSES, "loss")
        _check_choice(optimizer, tuple(OPTIMIZERS), "optimizer")
        for metric in metrics:
            _check_choice(metric, METRICS, "metric")
        for size, what in ((batch_size, "batch_size"), (evaluation_batch_size, "evaluation_batch_size")):
            if size < 1:
                raise PlanError(f"{what} must be at least 1, got {size}")
        self._loss = loss
        self._optimizer = optimizer
        self._options = dict(optimizer_options or {})
        self._batch_size = batch_size
        self._evaluation_batch_size = evaluation_batch_size
        self._metrics = {metric if isinstance(metric, str) else metric.__name__: metric for metric in metrics}
        self._max_norm = max_gradient_norm
        self._device = device
        self.metric_names: tuple[str, ...] = ("loss", *self._metrics)

    def train(self, model: torch.nn.Module, data: LocalData, round: RoundContext) -> dict[str, float]:
        """Train in place for the round's epochs or steps; returns means over the examples trained on."""
        import torch

        torch.manual_seed(round.derive_seed("torch"))
        _train_mode(model)
        if self._device != "cpu":
            model.to(self._device)
        optimizer = self._make_optimizer(model, round.learning_rate)
        _restore(optimizer, model, round.optimizer_state)
        dtype = _float_dtype(model)
        means = _Means()
        for samples, targets in self._train_batches(data, round):
            output, target = self._forward(model, samples, targets, dtype)
            loss = self._loss_of(output, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub has no return type
            if self._max_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self._max_norm)
            optimizer.step()
            means.add(len(target), self._measure(loss, output, target))
        if self._device != "cpu":
            model.to("cpu")
        state = _state_of(optimizer, model)
        round.optimizer_state.clear()
        round.optimizer_state.update(state)
        return means.result()

    def evaluate(self, model: torch.nn.Module, data: LocalData) -> dict[str, float]:
        """Return means over the validation examples, in evaluation mode."""
        import torch

        model.eval()
        if self._device != "cpu":
            model.to(self._device)
        dtype = _float_dtype(model)
        means = _Means()
        with torch.no_grad():
            for samples, targets in data.batches(self._evaluation_batch_size, part="validation"):
                output, target = self._forward(model, samples, targets, dtype)
                means.add(len(target), self._measure(self._loss_of(output, target), output, target))
        if self._device != "cpu":
            model.to("cpu")
        return means.result()

    def optimizer_tensors(self, model: torch.nn.Module, learning_rate: float) -> dict[str, Array]:
        """Return state as the optimizer will hold it, by ``<parameter>/<key>``: one step without gradient on a copy."""
        import torch

        trial = copy.deepcopy(model)
        optimizer = self._make_optimizer(trial, learning_rate)
        for parameter in trial.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return _state_of(optimizer, trial)

    def _train_batches(self, data: LocalData, round: RoundContext) -> Iterator[tuple[Any, Any]]:
        rng = round.rng("shuffle")
        if round.epochs is not None:
            for _ in range(round.epochs):
                yield from data.batches(self._batch_size, rng)
            return
        left = round.steps or 0
        while left:
            # zip asks `range` first, so that no batch is drawn, and counted, that is not trained on.
            for _, batch in zip(range(left), data.batches(self._batch_size, rng), strict=False):
                left -= 1
                yield batch

    def _forward(
        self, model: torch.nn.Module, samples: Any, targets: Any, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        sample, target = torch.as_tensor(samples), torch.as_tensor(targets)
        if sample.is_floating_point():
            sample = sample.to(dtype)
        output = model(sample.to(self._device))
        if output.dtype in (torch.float16, torch.bfloat16):
            output = output.float()
        return output, target.to(self._device)

    def _loss_of(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as functional

        if not isinstance(self._loss, str):
            return self._loss(output, target)
        if self._loss == "cross_entropy":
            return functional.cross_entropy(output, target if target.is_floating_point() else target.long())
        target = _like(target, output)
        if self._loss == "bce_with_logits":
            return functional.binary_cross_entropy_with_logits(output, target)
        return functional.mse_loss(output, target) if self._loss == "mse" else functional.l1_loss(output, target)

    def _measure(self, loss: torch.Tensor, output: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
        output = output.detach()
        values = {"loss": float(loss.detach())}
        for name, metric in self._metrics.items():
            values[name] = _named_metric(name, output, target) if isinstance(metric, str) else metric(output, target)
        return values

    def _make_optimizer(self, model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        import torch

        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not isinstance(self._optimizer, str):
            return self._optimizer(parameters, learning_rate)
        try:
            made = getattr(torch.optim, OPTIMIZERS[self._optimizer])(parameters, lr=learning_rate, **self._options)
        except (TypeError, ValueError) as error:
            raise PlanError(f"optimizer {self._optimizer!r} does not take {self._options}: {error}") from error
        return made  # type: ignore[no-any-return]  # looked up by name


class _Means:
    """Means over examples of values that come per batch, summed exactly."""

    def __init__(self) -> None:
        self._terms: dict[str, list[float]] = {}
        self._examples = 0

    def add(self, examples: int, values: Mapping[str, float]) -> None:
        self._examples += examples
        for name, value in values.items():
            self._terms.setdefault(name, []).append(float(value) * examples)

    def result(self) -> dict[str, float]:
        return {
            name: math.fsum(terms) / self._examples if all(map(math.isfinite, terms)) else math.nan
            for name, terms in self._terms.items()
        }


def _check_choice(value: object, known: tuple[str, ...], what: str) -> None:
    if callable(value) or value in known:
        return
    raise PlanError(f"unknown {what} {value!r}; give a callable or one of {', '.join(known)}")


def _train_mode(model: torch.nn.Module) -> None:
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _float_dtype(model: torch.nn.Module) -> torch.dtype:
    import torch

    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _like(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    if target.shape != output.shape and target.numel() == output.numel():
        target = target.reshape(output.shape)
    return target.to(output.dtype)


def _named_metric(name: str, output: torch.Tensor, target: torch.Tensor) -> float:
    if name == "accuracy":
        if output.ndim > 1 and output.shape[1] > 1:
            right = output.argmax(dim=1) == (target if target.ndim < output.ndim else target.argmax(dim=1))
        else:
            right = (output > 0) == (_like(target, output) > 0.5)  # a logit above 0 is a probability above 1/2
        return float(right.float().mean())
    error = output - _like(target, output)
    return float(error.abs().mean() if name == "mean_absolute_error" else error.square().mean())


def _state_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, Array]:
    import torch

    state: dict[str, Array] = {}
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


def _restore(optimizer: torch.optim.Optimizer, model: torch.nn.Module, state: Mapping[str, Array]) -> None:
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
