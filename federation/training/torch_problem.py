"""A site's training problem for a torch model: `TorchProblem`. Imports torch.

Rules, in order:

1. The same (seed, round, site) gives the same batches, the same dropout and, on one machine type and torch build, the
   same update. Shuffles come from generators of their own; torch's is seeded once, when the problem is made, for what
   draws from it.
2. A look at the gradient leaves buffers and the random stream as they were: asking for it changes no update.
3. A part of the model in which every parameter is frozen runs in evaluation mode also while training: a frozen
   backbone's batch-norm statistics stay as they were delivered, and its dropout is off.
4. Views are of CPU memory. A method that corrects gradients has the model come home for each step: on another device it
   is right, and slow.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from federation.algorithms.client import OptimizerChoice, Run, Step
from federation.algorithms.vector import Vector
from federation.training import fisher
from federation.training.modes import array_of, batch_norm_of, frozen, train_mode, undisturbed
from federation.training.objective import Objective
from federation.training.optimizers import Optimizer, make_optimizer, restore_state, state_of
from federation.training.passes import Amount, Group, Means, Sizes, groups_of, sample_of, walk
from federation.training.placement import Placement
from federation.training.seeding import seed_torch
from federation.training.torch_steps import GradientWatch, Stepper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from federation.data.local import LocalData
    from federation.training.context import RoundContext
    from federation.training.recipe import Recipe
    from federation.training.structure import Structure

_NOTHING: AbstractContextManager[None] = nullcontext()


class TorchProblem:
    """`federation.training.problems.SiteProblem` over a live ``nn.Module``.

    Args:
        recipe: what the task says: loss, optimizer, sizes.
        model: on the CPU, loaded.
        structure: of the model, current.
        data: the site's.
        round: the round.

    Attributes:
        metrics: training metrics of the latest run; of the latest gradient where there was no run.
        steps: optimizer steps of all runs.
        oracle_calls: gradients of single examples computed.
    """

    def __init__(
        self, recipe: Recipe, model: torch.nn.Module, structure: Structure, data: LocalData, round: RoundContext
    ) -> None:
        seed_torch(round.derive_seed("torch"))
        self._recipe = recipe
        self._model = model
        self._structure = structure
        self._data = data
        self._round = round
        self._sizes = Sizes(recipe.batch_size, recipe.evaluation_batch_size)
        self._objective = Objective(recipe, model, structure.parameters.values())
        self._device = Placement(model, recipe.device)
        self._stream: Iterator[Group] | None = None
        self._first_norm: float | None = None
        self.metrics: dict[str, float] = {}
        self.steps = 0
        self.oracle_calls = 0

    @cached_property
    def parameters(self) -> Vector:
        """Federated and trained tensors, live."""
        return Vector({name: array_of(tensor.data) for name, tensor in self._federated.items()})

    @cached_property
    def trained(self) -> Vector:
        """Every trained tensor, live, in the order of a schema."""
        return Vector({name: array_of(tensor.data) for name, tensor in self._trained.items()})

    @property
    def batch_norm(self) -> frozenset[str]:
        """Names of the tensors of batch normalisation, statistics included."""
        return batch_norm_of(self._model)

    @property
    def optimizer(self) -> OptimizerChoice:
        """The task's own; a factory of the author's goes by its name."""
        return self._recipe.optimizer_choice

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
        """See `federation.algorithms.client.LocalProblem.run`.

        A run with the task's own optimizer and on the main stream starts from the round's optimizer state and leaves
        its own there; any other starts fresh.
        """
        if "gradient_norm" in self._recipe.metrics and self._first_norm is None:
            self._first_norm = math.sqrt(self.gradient(estimator="full")[0].squared_norm())
        # Asked for before any is frozen, and while all are on the CPU.
        tensors = self._federated if gradient is not None or stop is not None else None
        parameters = self.parameters if tensors is not None else None
        train_mode(self._model, self._structure)
        rate = self._round.learning_rate if learning_rate is None else learning_rate
        rng = self._round.rng(purpose)
        with self._device, frozen(self._structure, only) if only is not None else _NOTHING:
            made = self._make_optimizer(optimizer, rate)
            is_main = optimizer is None and purpose == "shuffle"
            if is_main:
                restore_state(made, self._model, self._round.optimizer_state)
            layers = self._structure.plain_layers(self._model) if self._recipe.loss == "cross_entropy" else None
            stepper = Stepper(self._model, self._objective, made, self._recipe.max_gradient_norm, layers)
            watch: GradientWatch | None = None
            if tensors is not None and parameters is not None:
                watch = GradientWatch(self._model, tensors, parameters, self._device, gradient, sums=stop is not None)
                stepper.watch(watch.look)
            done = walk(
                Amount.of(self._round, epochs, steps),
                lambda: groups_of(self._data, self._round.estimator, self._sizes, rng),
                stepper.step,
                None if stop is None or watch is None else lambda: stop(watch.mean()),
            )
            if is_main:
                self._keep_state(made, only)
        self.metrics = stepper.means.result()
        if self._first_norm is not None:
            self.metrics["gradient_norm"] = self._first_norm
        self.steps += done.steps
        self.oracle_calls += done.examples
        return Run(
            steps=done.steps,
            learning_rate_sum=math.fsum(stepper.rates),
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
            self._stream = _endless(lambda: groups_of(self._data, "minibatch", self._sizes, rng))
        return self._look(next(self._stream))

    def fisher(self) -> Vector:
        """See `federation.algorithms.client.LocalProblem.fisher`."""
        total = self._data.train_examples
        self.oracle_calls += total
        with self._device:
            batches = self._data.batches(self._sizes.batch, is_counted=False)
            squares = fisher.mean_squares(self._model, self._objective, self._federated, batches, total)
        return Vector({name: array_of(square.cpu()) for name, square in squares.items()})

    def evaluate(self) -> dict[str, float]:
        """Return the task's metrics over the validation examples, in evaluation mode."""
        return evaluate(self._recipe, self._model, self._data)

    def loss(self) -> float:
        """Return the mean loss over the training examples, in evaluation mode."""
        batches = self._data.batches(self._sizes.evaluation, is_counted=False)
        return _measured(self._recipe, self._model, batches)["loss"]

    @cached_property
    def _trained(self) -> dict[str, torch.nn.Parameter]:
        named = {name: tensor for name, tensor in self._structure.parameters.items() if tensor.requires_grad}
        return dict(sorted(named.items(), key=lambda item: _place(item[0], item[1])))

    @cached_property
    def _federated(self) -> dict[str, torch.nn.Parameter]:
        names = self._round.federated or tuple(self._trained)
        return {name: self._trained[name] for name in names}

    def _look(self, group: Group) -> tuple[Vector, float]:
        """Return mean gradient and loss over a group (rule 2)."""
        means = Means()
        tensors = list(self._federated.values())
        total = [torch.zeros_like(tensor, device="cpu", dtype=fisher.wide(tensor.dtype)) for tensor in tensors]
        train_mode(self._model, self._structure)
        with undisturbed(self._model), self._device, torch.enable_grad():
            for samples, targets in group.batches:
                output, target = self._objective.forward(samples, targets)
                loss = self._objective.loss(output, target)
                means.add(len(target), self._objective.measure(loss, output, target))
                share = len(target) / group.examples
                for sum_, part in zip(total, torch.autograd.grad(loss, tensors, allow_unused=True), strict=True):
                    if part is not None:
                        sum_ += part.cpu() * share
        self.oracle_calls += group.examples
        result = means.result()
        if not self.steps:
            self.metrics = result
        return Vector({name: array_of(each) for name, each in zip(self._federated, total, strict=True)}), result["loss"]

    def _make_optimizer(self, choice: OptimizerChoice | None, rate: float) -> Optimizer:
        parameters = self._structure.trained()
        if choice is not None:
            return make_optimizer(choice.name, parameters, rate, choice.options)
        return own_optimizer(self._recipe, parameters, rate)

    def _keep_state(self, optimizer: Optimizer, only: Callable[[str], bool] | None) -> None:
        kept = self._round.optimizer_state
        for key in [key for key in kept if only is None or only(key.rpartition("/")[0])]:
            del kept[key]
        kept.update(state_of(optimizer, self._model))


def evaluate(recipe: Recipe, model: torch.nn.Module, data: LocalData) -> dict[str, float]:
    """Return means over the validation examples, in evaluation mode."""
    return _measured(recipe, model, data.batches(recipe.evaluation_batch_size, part="validation"))


def own_optimizer(recipe: Recipe, parameters: Sequence[torch.nn.Parameter], rate: float) -> Optimizer:
    """Return the task's optimizer."""
    if not isinstance(recipe.optimizer, str):
        return recipe.optimizer(list(parameters), rate)
    return make_optimizer(recipe.optimizer, parameters, rate, recipe.optimizer_options)


def _measured(recipe: Recipe, model: torch.nn.Module, batches: Iterator[tuple[Any, Any]]) -> dict[str, float]:
    model.eval()
    objective = Objective(recipe, model, model.parameters())
    means = Means()
    with Placement(model, recipe.device), torch.no_grad():
        for samples, targets in batches:
            output, target = objective.forward(samples, targets)
            means.add(len(target), objective.measure(objective.loss(output, target), output, target))
    return means.result()


def _endless(pass_of: Callable[[], Iterator[Group]]) -> Iterator[Group]:
    while True:
        yield from pass_of()


def _place(name: str, tensor: torch.Tensor) -> tuple[int, str, str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return -tensor.itemsize, dtype, name
