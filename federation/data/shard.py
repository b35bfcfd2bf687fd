"""What a shard is: the private data one site offers under one name.

Rules, in order:

1. A shard has data to train on and data to validate on, both with at least one example, and says the shape of one
   sample and one target, so that an experiment that does not fit is refused before anything runs.
2. Data is a pair of arrays (samples, targets) of equal length, or anything indexable that gives pairs, such as a torch
   map-style dataset.
3. Several shards a site offers for one experiment are trained on as one, joined in name order.
"""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from federation.tensors.buffers import Array

if TYPE_CHECKING:
    from collections.abc import Sequence


@runtime_checkable
class IndexedDataset(Protocol):
    """A map-style dataset: ``dataset[i]`` is the pair (sample, target) of example i."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return the pair (sample, target) of one example."""
        ...


Dataset: TypeAlias = tuple[Array, Array] | IndexedDataset
"""Two arrays (samples, targets) whose first axis counts examples, or a map-style dataset."""


@runtime_checkable
class Shard(Protocol):
    """Private data of a site, offered under a name.

    Attributes:
        train: data to train on; never empty.
        validation: data to evaluate on, disjoint from `train`; never empty.
        sample_shape: shape of one sample, without a batch axis.
        target_shape: shape of one target; ``()`` for a class number or one value.
        description: one line for people who decide whether an experiment fits. It leaves the site.
    """

    @property
    def train(self) -> Dataset:
        """Data to train on."""
        ...

    @property
    def validation(self) -> Dataset:
        """Data to evaluate on."""
        ...

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one target."""
        ...

    @property
    def description(self) -> str:
        """One line for people."""
        ...


class ArrayShard:
    """A shard from arrays in memory. Subclass it to read your own files: see `CsvShard`.

    Args:
        train: samples and targets, equally many, at least one.
        validation: the same for evaluation.
        description: one line; it leaves the site.

    Raises:
        ValueError: empty, of unequal lengths, or train and validation have different shapes.
    """

    def __init__(self, *, train: tuple[Array, Array], validation: tuple[Array, Array], description: str = "") -> None:
        self.train = _checked(train, "train")
        self.validation = _checked(validation, "validation")
        self.sample_shape: tuple[int, ...] = self.train[0].shape[1:]
        self.target_shape: tuple[int, ...] = self.train[1].shape[1:]
        self.description = description
        got = (self.validation[0].shape[1:], self.validation[1].shape[1:])
        if got != (self.sample_shape, self.target_shape):
            raise ValueError(
                f"validation has samples of shape {got[0]} and targets of shape {got[1]}, "
                f"train has {self.sample_shape} and {self.target_shape}"
            )


class JoinedShard:
    """Several shards as one. The parts stay where they are; nothing is copied.

    Args:
        shards: at least one, all of the same sample and target shape.

    Raises:
        ValueError: none, or their shapes differ.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        if not shards:
            raise ValueError("no shard to join")
        first = shards[0]
        for other in shards[1:]:
            if (other.sample_shape, other.target_shape) != (first.sample_shape, first.target_shape):
                raise ValueError(
                    f"shards of shapes {first.sample_shape}, {first.target_shape} and {other.sample_shape}, "
                    f"{other.target_shape} cannot be offered as one"
                )
        self.train = _join([shard.train for shard in shards])
        self.validation = _join([shard.validation for shard in shards])
        self.sample_shape = first.sample_shape
        self.target_shape = first.target_shape
        self.description = " + ".join(shard.description for shard in shards)


class _Joined:
    """Map-style datasets one after another."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(count_examples(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        part = self._parts[number]
        inner = index - (self._ends[number - 1] if number else 0)
        return (part[0][inner], part[1][inner]) if is_pair(part) else part[inner]


def is_pair(data: object) -> bool:
    """Tell whether data is a pair of arrays rather than a map-style dataset."""
    return isinstance(data, tuple) and len(data) == 2


def count_examples(data: Dataset) -> int:
    """Return the number of examples."""
    return len(data[0]) if is_pair(data) else len(data)


def _join(parts: list[Dataset]) -> Dataset:
    if len(parts) == 1:
        return parts[0]
    if all(is_pair(part) and isinstance(part[0], np.ndarray) for part in parts):
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    return _Joined(parts)


def _checked(pair: tuple[Array, Array], what: str) -> tuple[Array, Array]:
    samples, targets = np.asarray(pair[0]), np.asarray(pair[1])
    if samples.ndim == 0 or targets.ndim == 0 or len(samples) != len(targets):
        raise ValueError(f"{what} has samples of shape {samples.shape} and targets of shape {targets.shape}")
    if len(samples) == 0:
        raise ValueError(f"{what} is empty; a shard needs at least one example to train and one to validate on")
    return samples, targets
