"""Data as a task is handed it: what the shard gave, and batches drawn from it reproducibly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from federation.data.shard import Dataset, Shard, count_examples, is_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.tensors.buffers import Array


class LocalData:
    """A site's data for one experiment.

    A task may use `train` and `validation` as they are, or draw from `batches`. A site reports as its examples the
    distinct ones that were drawn, or all of them for a task that draws none and works on the whole.

    Attributes:
        train: what the shard gave: a pair of arrays or a map-style dataset.
        validation: likewise.
        is_arrays: training data is a pair of NumPy's own arrays, of which no code of an author's gives a row.
        sample_shape: shape of one sample.
        target_shape: shape of one target.
    """

    def __init__(self, shard: Shard) -> None:
        self.train: Dataset = shard.train
        self.validation: Dataset = shard.validation
        self.sample_shape = tuple(shard.sample_shape)
        self.target_shape = tuple(shard.target_shape)
        self.is_arrays = type(shard.train) is tuple and all(type(part) is np.ndarray for part in shard.train)
        self._seen: Any = None
        self._has_seen_all = False
        self._steps = 0
        self._drawn = 0

    @property
    def train_examples(self) -> int:
        """Number of training examples the site has."""
        return count_examples(self.train)

    @property
    def validation_examples(self) -> int:
        """Number of validation examples the site has."""
        return count_examples(self.validation)

    def batches(
        self,
        batch_size: int,
        rng: np.random.Generator | None = None,
        *,
        part: Literal["train", "validation"] = "train",
        chosen: Array | None = None,
        is_counted: bool = True,
    ) -> Iterator[tuple[Any, Any]]:
        """Draw one pass over the data, batch by batch.

        A last batch of a single example joins the one before: batch norm cannot be trained on one example.

        Args:
            batch_size: examples in a batch, at least 1.
            rng: shuffles; None keeps the order.
            part: what to draw from.
            chosen: indices to draw from in place of all.
            is_counted: training examples drawn count as used; a look at the gradient does not train on them.

        Yields:
            Samples and targets of one batch: arrays for data that is arrays, stacked tensors for torch datasets. The
            caller owns them.

        Raises:
            ValueError: `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        data = self.train if part == "train" else self.validation
        order = np.arange(count_examples(data)) if chosen is None else np.array(chosen)
        count = len(order)
        if rng is not None:
            rng.shuffle(order)
        start = 0
        while start < count:
            end = min(start + batch_size, count)
            if count - end == 1 and batch_size > 1:
                end = count
            rows = order[start:end]
            if part == "train" and is_counted:
                self._note(rows, is_all=chosen is None and len(rows) == count)
            yield _gather(data, rows)
            start = end

    def batch_sizes(self, batch_size: int) -> set[int]:
        """Return the sizes of the batches of one training pass, as `batches` cuts them."""
        whole, rest = divmod(self.train_examples, batch_size)
        if rest == 1 and whole and batch_size > 1:
            return {batch_size + 1} if whole == 1 else {batch_size, batch_size + 1}
        return {size for size, count in ((batch_size, whole), (rest, rest)) if count}

    def start_count(self) -> None:
        """Forget which training examples were drawn; the trainer calls this before each round."""
        self._seen = None
        self._has_seen_all = False
        self._steps = 0
        self._drawn = 0

    @property
    def examples_drawn(self) -> int:
        """Training examples drawn since `start_count`, each as often as it was drawn."""
        return self._drawn

    @property
    def examples_used(self) -> int:
        """Distinct training examples drawn since `start_count`; all of them if none was drawn."""
        if self._seen is None or self._has_seen_all:
            return self.train_examples
        return int(np.count_nonzero(self._seen))

    @property
    def batches_drawn(self) -> int:
        """Training batches drawn since `start_count`."""
        return self._steps

    def _note(self, chosen: Any, *, is_all: bool) -> None:
        if is_all:
            self._has_seen_all = True
        else:
            if self._seen is None:
                self._seen = np.zeros(self.train_examples, dtype=bool)
            self._seen[chosen] = True
        self._steps += 1
        self._drawn += len(chosen)


def _gather(data: Dataset, chosen: Any) -> tuple[Any, Any]:
    if is_pair(data):
        return _rows(data[0], chosen), _rows(data[1], chosen)
    rows = [data[int(index)] for index in chosen]
    return _stack([row[0] for row in rows]), _stack([row[1] for row in rows])


def _rows(values: Any, chosen: Any) -> Any:
    # The same rows; NumPy's own indexing looks first for all else that an index could be.
    return values.take(chosen, axis=0) if type(values) is np.ndarray else values[chosen]


def _stack(items: list[Any]) -> Any:
    if type(items[0]).__module__.partition(".")[0] == "torch":
        import torch

        return torch.stack(items)
    return np.stack([np.asarray(item) for item in items])
