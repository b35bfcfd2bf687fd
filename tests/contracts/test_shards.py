"""What every ready-made shard keeps: the `Shard` protocol. Add yours to the list to have it checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.data import ArrayShard, CsvShard, JoinedShard, LocalData, NpzShard, Shard
from federation.data.loading import _check_shard
from federation.data.shard import count_examples

if TYPE_CHECKING:
    from pathlib import Path


class _Squares:
    """A map-style dataset, as torch's are: item i is the pair (i, i squared)."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return np.full(4, index, np.float32), np.asarray(index**2)


class _DatasetShard:
    train = _Squares(7)
    validation = _Squares(3)
    sample_shape = (4,)
    target_shape = ()
    description = "squares"


def _arrays(count: int = 10) -> ArrayShard:
    rows = (np.ones((count, 4), np.float32), np.arange(count))
    return ArrayShard(train=rows, validation=rows, description="ones")


def _csv(folder: Path) -> CsvShard:
    rows = "\n".join(f"{number},1,2,3,{number % 2}" for number in range(10))
    (folder / "t.csv").write_text(f"a,b,c,d,label\n{rows}\n")
    return CsvShard(folder / "t.csv", "label")


def _npz(folder: Path) -> NpzShard:
    for part in range(2):
        np.savez(folder / f"{part}.npz", x=np.full((5, 4), part, np.float32), y=np.arange(5))
    return NpzShard(folder)


def _sklearn(name: str, *arguments: object) -> Shard:
    pytest.importorskip("sklearn")
    import federation.data.samples as samples

    made: Shard = getattr(samples, name)(*arguments)
    return made


MAKERS = {
    "arrays": lambda folder: _arrays(),
    "csv": _csv,
    "npz": _npz,
    "joined arrays": lambda folder: JoinedShard([_arrays(), _arrays(3)]),
    "map-style dataset": lambda folder: _DatasetShard(),
    "joined mixed": lambda folder: JoinedShard([_arrays(), _DatasetShard()]),
    "breast cancer": lambda folder: _sklearn("BreastCancerShard", "island"),
    "digits": lambda folder: _sklearn("DigitsShard", 0),
}


@pytest.fixture(params=MAKERS, ids=str)
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Shard:
    made: Shard = MAKERS[request.param](tmp_path)
    return made


def test_it_is_a_shard_whose_first_examples_have_the_shapes_it_says(shard: Shard) -> None:
    assert isinstance(shard, Shard)
    _check_shard(shard, "the contract")


def test_batches_draw_every_example_exactly_once(shard: Shard) -> None:
    data = LocalData(shard)
    drawn = list(data.batches(4, np.random.default_rng(0)))
    assert sum(len(targets) for _, targets in drawn) == count_examples(shard.train) == data.examples_used
    for samples, targets in drawn:
        assert samples.shape[1:] == shard.sample_shape
        assert targets.shape[1:] == shard.target_shape


def test_a_batch_holds_pairs_that_belong_together(shard: Shard) -> None:
    data = LocalData(shard)
    plain = [(x.tobytes(), y.tobytes()) for xs, ys in data.batches(3) for x, y in zip(xs, ys, strict=True)]
    rng = np.random.default_rng(1)
    mixed = [(x.tobytes(), y.tobytes()) for xs, ys in data.batches(3, rng) for x, y in zip(xs, ys, strict=True)]
    assert sorted(plain) == sorted(mixed)
