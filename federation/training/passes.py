"""How much a local run does: passes over the data, steps, or seconds; and what one step takes its gradient over.

Rules, in order:

1. A step takes one *group* of examples: a minibatch of a shuffled pass, all examples (``full``), or a fixed number
   drawn without replacement (``subset:SIZE``; as many steps make a pass as it takes to see as many examples as the site
   has). A group comes in batches that fit in memory.
2. A run ends after its epochs, its steps or its seconds, whichever it was given; `Amount.steps` beside seconds is a
   cap. At least one step is taken, however short the time.
3. Nothing is drawn that is not used: what was drawn is what the site reports as examples and steps.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from federation.data.local import LocalData
    from federation.training.context import RoundContext


class Group(NamedTuple):
    """What one gradient is taken over: `examples` in all, in `batches` of (samples, targets)."""

    examples: int
    batches: Iterable[tuple[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """When a run ends; the one of `epochs` (passes), `steps` and `seconds` that is given, or steps and seconds."""

    epochs: int | None
    steps: int | None
    seconds: float | None = None

    @classmethod
    def of(cls, round: RoundContext, epochs: int | None, steps: int | None) -> Amount:
        """Return what a caller asked for, or else what the round says."""
        if epochs is None and steps is None:
            return cls(epochs=round.epochs, steps=round.steps, seconds=round.seconds)
        return cls(epochs=epochs, steps=steps)


class Sizes(NamedTuple):
    """Examples in a training batch, and in a batch of what needs no step, such as an evaluation."""

    batch: int
    evaluation: int


def groups_of(data: LocalData, estimator: str, sizes: Sizes, rng: np.random.Generator) -> Iterator[Group]:
    """Yield the groups of one training pass (rule 1); what is drawn counts as used."""
    if estimator == "minibatch":
        for batch in data.batches(sizes.batch, rng):
            yield Group(len(batch[1]), (batch,))
        return
    total = data.train_examples
    size = _group_size(estimator, total)
    for _ in range(math.ceil(total / size) if size else 0):
        chosen = None if size == total else _draw(rng, total, size)
        yield Group(size, data.batches(sizes.evaluation, chosen=chosen))


def sample_of(data: LocalData, estimator: str, sizes: Sizes, rng: np.random.Generator) -> Group:
    """Return one group for a look at the gradient; it does not count as trained on."""
    total = data.train_examples
    size = min(sizes.batch, total) if estimator == "minibatch" else _group_size(estimator, total)
    chosen = None if size == total else _draw(rng, total, size)
    return Group(size, data.batches(sizes.evaluation, chosen=chosen, is_counted=False))


class Walk(NamedTuple):
    """What a run did: `steps` taken, and `examples` drawn, each as often as it was."""

    steps: int
    examples: int


def walk(
    amount: Amount,
    groups: Callable[[], Iterator[Group]],
    step: Callable[[int, Group], None],
    is_enough: Callable[[], bool] | None = None,
) -> Walk:
    """Take steps until the amount is reached (rule 2).

    Args:
        amount: when to end.
        groups: gives the groups of one more pass.
        step: takes one step; arguments are its number, from 0, and its group.
        is_enough: asked after each whole pass; True ends the run.
    """
    ends_at = None if amount.seconds is None else time.perf_counter() + amount.seconds
    steps = examples = 0
    for number in itertools.count(1):
        before = steps
        drawn = groups()
        while amount.steps is None or steps < amount.steps:
            group = next(drawn, None)
            if group is None:
                break
            step(steps, group)
            steps += 1
            examples += group.examples
            if ends_at is not None and time.perf_counter() >= ends_at:
                return Walk(steps, examples)
        else:
            return Walk(steps, examples)
        is_last = number == amount.epochs or steps == before
        if is_last or (is_enough is not None and is_enough()):
            return Walk(steps, examples)
    raise RuntimeError("a count without end has ended")


class Means:
    """Means over examples of values that come per batch, summed exactly."""

    def __init__(self) -> None:
        self._terms: dict[str, list[float]] = {}
        self._examples = 0

    def add(self, examples: int, values: Mapping[str, float]) -> None:
        """Take in the means over one batch of `examples`."""
        self._examples += examples
        for name, value in values.items():
            self._terms.setdefault(name, []).append(float(value) * examples)

    def result(self) -> dict[str, float]:
        """Return the mean of each value over all examples; NaN if a term was not finite."""
        return {
            name: math.fsum(terms) / self._examples if all(map(math.isfinite, terms)) else math.nan
            for name, terms in self._terms.items()
        }


def _group_size(estimator: str, total: int) -> int:
    return total if estimator == "full" else min(int(estimator.partition(":")[2]), total)


def _draw(rng: np.random.Generator, total: int, size: int) -> np.ndarray[Any, Any]:
    return np.sort(rng.choice(total, size=size, replace=False))
