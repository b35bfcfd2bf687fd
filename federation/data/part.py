"""One site's part of a whole dataset, the same on the wire and in a simulation.

`divide` makes all parts of a shard; a simulation uses it directly. `PartShard` is the factory an envoy names in its
configuration for one of them. Training data is divided by the scheme, validation data at random into equal parts; if
there are fewer validation examples than sites, each site validates on all of them. Under ``noise`` both get the site's
own noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from federation.data.loading import load_shard
from federation.data.partitions import PartitionScheme, Source, feature_noise, iid, parse_partition
from federation.data.shard import Dataset, Shard, count_examples, is_pair
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.tensors.buffers import Array


def divide(shard: Shard, scheme: str | PartitionScheme, of: int, seed: int = 0) -> list[Shard]:
    """Divide a shard with the whole dataset among sites.

    Args:
        shard: the whole.
        scheme: how, such as ``"iid"`` or ``"dirichlet:0.3"``.
        of: number of sites.
        seed: decides the draw.

    Returns:
        The part of each site. Parts of arrays are views of one reordered copy of the whole; parts of a map-style
        dataset are views of it.

    Raises:
        PlanError: no such scheme, it does not fit the data, or a site would be left without an example.
    """
    scheme = parse_partition(scheme) if isinstance(scheme, str) else scheme
    train = training_parts(shard, scheme, of, seed)
    validation = _validation_parts(shard, of, seed)
    datasets = [_take_all(shard.train, train), _take_all(shard.validation, validation)]
    if scheme.noise:
        for data, purpose in zip(datasets, ("train", "validation"), strict=True):
            data[:] = [_noisy(mine, site, of, scheme.noise, seed, purpose) for site, mine in enumerate(data)]
    return [
        _Part(shard, mine, held, f"{shard.description}, part {number} of {of} ({scheme})")
        for number, (mine, held) in enumerate(zip(*datasets, strict=True))
    ]


def training_parts(shard: Shard, scheme: PartitionScheme, of: int, seed: int) -> list[Array]:
    """Return which training examples each site gets: sorted numbers in the order of the whole.

    Raises:
        PlanError: the scheme does not fit the data, or a site would be left without an example.
    """
    parts = scheme.divide(_source(shard), of, seed=seed)
    if len(parts) != of:
        raise PlanError(
            f"{scheme} makes {len(parts)} parts of this data, {of} sites are wanted; use {len(parts)} sites"
        )
    for number, part in enumerate(parts):
        if not len(part):
            raise PlanError(
                f"{scheme} leaves site {number} of {of} without an example; use fewer sites or another seed"
            )
    return parts


class PartShard:
    """Part `part` of `of` of a whole dataset: for an envoy that stands for one site of a divided public dataset.

    Args:
        base: factory of the whole, ``module:Class``.
        options: its options.
        scheme: how the whole is divided, such as ``"dirichlet:0.3"``.
        part: which part, from 0.
        of: number of parts.
        seed: decides the division; all sites must say the same.

    Raises:
        ShardError: the whole cannot be loaded.
        PlanError: no such scheme or part, or the scheme does not fit the data.
    """

    def __init__(
        self, *, base: str, options: Mapping[str, Any] = {}, scheme: str = "iid", part: int, of: int, seed: int = 0
    ) -> None:
        if not 0 <= part < of:
            raise PlanError(f"part is {part}; it goes from 0 to of - 1, {of - 1}")
        mine = divide(load_shard("whole", base, options), scheme, of, seed)[part]
        self.train, self.validation = _owned(mine.train), _owned(mine.validation)
        self.sample_shape, self.target_shape = mine.sample_shape, mine.target_shape
        self.description = mine.description


class _Part:
    """A shard whose data are views of another's."""

    def __init__(self, whole: Shard, train: Dataset, validation: Dataset, description: str) -> None:
        self.train = train
        self.validation = validation
        self.sample_shape = whole.sample_shape
        self.target_shape = whole.target_shape
        self.description = description


class _Chosen:
    """Some examples of a map-style dataset."""

    def __init__(self, whole: Any, chosen: Array) -> None:
        self._whole = whole
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Any:
        return self._whole[int(self._chosen[index])]


def _source(shard: Shard) -> Source:
    data = shard.train
    return Source(
        examples=count_examples(data),
        labels=lambda: labels_of(data),
        points=lambda: _samples_of(data),
        ids=lambda: _ids_of(shard),
    )


def labels_of(data: Dataset) -> Array:
    """Return the class of each example, shape (n,).

    Raises:
        PlanError: targets are not one whole number each.
    """
    labels = np.asarray(data[1] if is_pair(data) else [data[number][1] for number in range(count_examples(data))])
    if labels.ndim != 1:
        raise PlanError(f"targets of shape {labels.shape[1:]} are not classes; divide by iid or by sizes instead")
    if np.issubdtype(labels.dtype, np.floating) and not (labels == np.rint(labels)).all():
        raise PlanError("targets are not whole numbers, so they are not classes; divide by iid or by sizes instead")
    return labels


def _samples_of(data: Dataset) -> Array:
    return np.asarray(data[0] if is_pair(data) else [data[number][0] for number in range(count_examples(data))])


def _ids_of(shard: Shard) -> Array:
    ids = getattr(shard, "ids", None)
    if ids is None or len(ids) != count_examples(shard.train):
        raise PlanError("partition natural needs a shard with `ids`: who each training example belongs to, shape (n,)")
    return np.asarray(ids)


def _validation_parts(shard: Shard, of: int, seed: int) -> list[Array]:
    examples = count_examples(shard.validation)
    if examples < of:
        return [np.arange(examples)] * of
    return iid(examples, of, seed=seed)


def _take_all(data: Dataset, parts: Sequence[Array]) -> list[Dataset]:
    if not is_pair(data):
        return [_Chosen(data, part) for part in parts]
    order = np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    # Copied once, so that each site's examples lie together: parts are real arrays, and none is a copy of its own.
    samples, targets = (np.split(np.asarray(array)[order], ends) for array in (data[0], data[1]))
    return list(zip(samples, targets, strict=True))


def _noisy(data: Dataset, site: int, of: int, sigma: float, seed: int, purpose: str) -> Dataset:
    samples = feature_noise(_samples_of(data), site, of, sigma=sigma, seed=seed, purpose=purpose)
    targets = data[1] if is_pair(data) else np.asarray([data[number][1] for number in range(count_examples(data))])
    return samples, targets


def _owned(data: Dataset) -> Dataset:
    """Let go of the whole: one site's process should not hold everybody's examples."""
    return (np.array(data[0]), np.array(data[1])) if is_pair(data) else data
