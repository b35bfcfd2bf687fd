"""A site's training problem for a task that computes its gradients in NumPy: `ArrayProblem`.

The local optimizer is SGD: v ← m v + g + λ w, w ← w − η v, with momentum m and weight decay λ (0 by default), in the
dtype of each tensor. A step's gradient is the mean over its group of examples, summed batch by batch in their order, so
float64 models keep float64 precision throughout.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from federation.algorithms.client import Run, Step
from federation.algorithms.vector import Vector
from federation.errors import PlanError
from federation.tensors import DType, TensorSchema, TensorSpec
from federation.training.passes import Amount, Group, Means, Sizes, groups_of, sample_of, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from federation.algorithms.client import OptimizerChoice
    from federation.data.local import LocalData
    from federation.tensors.buffers import Array
    from federation.training.context import RoundContext

_OPTIONS = ("momentum", "weight_decay")


class ArrayTask(Protocol):
    """What a problem over arrays asks of its task; `federation.GradientTask` says what each of them is."""

    batch_size: int
    evaluation_batch_size: int

    @property
    def optimizer_choice(self) -> OptimizerChoice:
        """The local optimizer."""
        ...

    def gradient(
        self, model: dict[str, Array], samples: Any, targets: Any
    ) -> tuple[Mapping[str, float], Mapping[str, Array]]:
        """Return metrics and gradients of one batch, both as means over its examples."""
        ...

    def evaluate(self, model: dict[str, Array], data: LocalData) -> Mapping[str, float]:
        """Return metrics over the validation examples."""
        ...


class ArrayProblem:
    """`federation.training.problems.SiteProblem` over a dictionary of live arrays.

    Args:
        task: gives gradients, sizes and the optimizer.
        model: live arrays by name; floats are trained.
        data: the site's.
        round: the round.

    Attributes:
        metrics: training metrics of the latest run; of the latest gradient where there was no run.
        steps: optimizer steps of all runs.
        oracle_calls: gradients of single examples computed.
    """

    batch_norm: frozenset[str] = frozenset()

    def __init__(self, task: ArrayTask, model: dict[str, Array], data: LocalData, round: RoundContext) -> None:
        self._task = task
        self._model = model
        self._data = data
        self._round = round
        self._sizes = Sizes(task.batch_size, task.evaluation_batch_size)
        self._stream: Iterator[Group] | None = None
        self.metrics: Mapping[str, float] = {}
        self.steps = 0
        self.oracle_calls = 0

    @cached_property
    def trained(self) -> Vector:
        """Every trained tensor, live, in the order of a schema."""
        specs = [
            TensorSpec(name=name, dtype=DType.of(array.dtype), shape=array.shape)
            for name, array in self._model.items()
            if DType.of(array.dtype).is_float
        ]
        return Vector({spec.name: self._model[spec.name] for spec in TensorSchema.of(specs)})

    @cached_property
    def parameters(self) -> Vector:
        """Federated and trained tensors, live."""
        names = self._round.federated or tuple(self.trained)
        return Vector({name: self._model[name] for name in names})

    @property
    def optimizer(self) -> OptimizerChoice:
        """The task's own."""
        return self._task.optimizer_choice

    def run(
        self,
        *,
        gradient: Callable[[Step], None] | None = None,
        only: Callable[[str], bool] | None = None,
        optimizer: OptimizerChoice | None = None,
        learning_rate: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        stop: Callable[[Vector], bool] | None = None,
        purpose: str = "shuffle",
    ) -> Run:
        """See `federation.algorithms.client.LocalProblem.run`."""
        rate = self._round.learning_rate if learning_rate is None else learning_rate
        rng = self._round.rng(purpose)
        is_main = optimizer is None and purpose == "shuffle"
        sgd = _Sgd(optimizer or self.optimizer, self._round.optimizer_state if is_main else {})
        moved = self.trained if only is None else self.trained.select(only)
        means = Means()
        seen: list[Vector] = []

        def step(k: int, group: Group) -> None:
            """Move the trained parameters by the gradient estimated from one group."""
            total, taken = self._total(group)
            means.add(group.examples, taken)
            shown = total.select(lambda name: name in self.parameters)
            if gradient is not None:
                gradient(Step(k=k, parameters=self.parameters, gradients=shown, learning_rate=rate))
            if stop is not None:
                seen.append(shown.copy())
            sgd.step(moved, total, rate)

        done = walk(
            Amount.of(self._round, epochs, steps),
            lambda: groups_of(self._data, self._round.estimator, self._sizes, rng),
            step,
            None if stop is None else lambda: stop(_mean(seen)),
        )
        if is_main:
            self._round.optimizer_state.clear()
            self._round.optimizer_state.update(sgd.state)
        self.metrics = means.result()
        self.steps += done.steps
        self.oracle_calls += done.examples
        return Run(
            steps=done.steps,
            learning_rate_sum=math.fsum(itertools.repeat(rate, done.steps)),
            passes=done.examples // max(self._data.train_examples, 1),
            oracle_calls=done.examples,
            metrics=self.metrics,
        )

    def gradient(self, *, estimator: str | None = None, purpose: str = "gradient") -> tuple[Vector, float]:
        """See `federation.algorithms.client.LocalProblem.gradient`."""
        chosen = sample_of(self._data, estimator or self._round.estimator, self._sizes, self._round.rng(purpose))
        return self._look(chosen)

    def next_gradient(self) -> tuple[Vector, float]:
        """See `federation.algorithms.client.LocalProblem.next_gradient`."""
        if self._stream is None:
            rng = self._round.rng("next-gradient")
            passes = (groups_of(self._data, "minibatch", self._sizes, rng) for _ in itertools.count())
            self._stream = itertools.chain.from_iterable(passes)
        return self._look(next(self._stream))

    def fisher(self) -> Vector:
        """See `federation.algorithms.client.LocalProblem.fisher`; one example at a time."""
        total = self.parameters.widened().zeros_like()
        examples = self._data.train_examples
        for samples, targets in self._data.batches(1, is_counted=False):
            _, found = self._checked(samples, targets)
            one = Vector({name: found[name] for name in total}).widened()
            total += one * one / examples
        self.oracle_calls += examples
        return total

    def evaluate(self) -> dict[str, float]:
        """Return the task's metrics on the validation examples."""
        return dict(self._task.evaluate(self._model, self._data))

    def loss(self) -> float:
        """Return the mean loss over the training examples."""
        batches = self._data.batches(self._sizes.evaluation, is_counted=False)
        return means_of(self._task, self._model, batches)["loss"]

    def _look(self, group: Group) -> tuple[Vector, float]:
        total, metrics = self._total(group)
        self.oracle_calls += group.examples
        if not self.steps:
            self.metrics = metrics
        return total.select(lambda name: name in self.parameters).widened(), metrics["loss"]

    def _total(self, group: Group) -> tuple[Vector, dict[str, float]]:
        """Return the mean gradient over a group, in arrays of their own, and the mean metrics."""
        means = Means()
        total: Vector | None = None
        for samples, targets in group.batches:
            metrics, found = self._checked(samples, targets)
            means.add(len(targets), metrics)
            share = len(targets) / group.examples
            part = Vector({name: np.array(found[name], value.dtype) for name, value in self.trained.items()})
            if share != 1.0:
                part *= share
            if total is None:
                total = part
            else:
                total += part
        return total if total is not None else self.trained.zeros_like(), means.result()

    def _checked(self, samples: Any, targets: Any) -> tuple[Mapping[str, float], dict[str, Array]]:
        metrics, found = self._task.gradient(self._model, samples, targets)
        arrays = {name: np.asarray(value) for name, value in found.items()}
        for name, value in self.trained.items():
            got = arrays.get(name)
            if got is None or got.shape != value.shape:
                shown = "nothing" if got is None else f"shape {list(got.shape)}"
                raise PlanError(
                    f"{type(self._task).__name__}.gradient returned {shown} for tensor {name!r}; "
                    f"expected a gradient of shape {list(value.shape)}"
                )
        if "loss" not in metrics:
            raise PlanError(f"{type(self._task).__name__}.gradient returned no metric 'loss'; it is the mean loss")
        return metrics, arrays


class _Sgd:
    """SGD with momentum and weight decay; its state is ``<parameter>/momentum_buffer``."""

    def __init__(self, choice: OptimizerChoice, state: Mapping[str, Array]) -> None:
        unknown = sorted(set(choice.options) - set(_OPTIONS))
        if choice.name != "sgd" or unknown:
            raise PlanError(
                f"optimizer {choice.name!r} with options {dict(choice.options)} is not one of a NumPy task: "
                f"use 'sgd' with {' and '.join(_OPTIONS)}"
            )
        self._momentum = float(choice.options.get("momentum", 0.0))
        self._decay = float(choice.options.get("weight_decay", 0.0))
        self.state = {name: np.array(value) for name, value in state.items()}

    def step(self, moved: Vector, gradients: Vector, rate: float) -> None:
        """Move `moved` in place by one SGD step, with momentum and weight decay as torch has them."""
        for name, value in moved.items():
            direction = gradients[name]
            if self._decay:
                direction = direction + self._decay * value
            if self._momentum:
                key = f"{name}/momentum_buffer"
                old = self.state.get(key)
                direction = np.array(direction) if old is None else self._momentum * old + direction
                self.state[key] = direction
            value -= rate * direction


def means_of(task: ArrayTask, model: dict[str, Array], batches: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Return the means over examples of the metrics that `task.gradient` reports."""
    means = Means()
    for samples, targets in batches:
        means.add(len(targets), task.gradient(model, samples, targets)[0])
    return means.result()


def _mean(seen: list[Vector]) -> Vector:
    total = seen[0]
    for each in seen[1:]:
        total += each
    mean = total / len(seen)
    seen.clear()
    return mean
