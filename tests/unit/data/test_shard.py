from __future__ import annotations

import numpy as np
import pytest

from federation.data import ArrayShard, JoinedShard


def _rows(count: int, width: int = 2) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((count, width), np.float32), np.zeros(count, np.int64)


def test_shapes_are_those_of_one_example() -> None:
    shard = ArrayShard(train=_rows(3), validation=_rows(1))
    assert (shard.sample_shape, shard.target_shape) == ((2,), ())


@pytest.mark.parametrize(
    ("train", "validation", "says"),
    [
        (_rows(0), _rows(1), "train is empty"),
        (_rows(1), _rows(0), "validation is empty"),
        ((_rows(2)[0], _rows(3)[1]), _rows(1), r"\(2, 2\)"),
        (_rows(2), _rows(2, width=3), "validation has samples of shape"),
        ((np.float32(1), np.float32(1)), _rows(1), "shape"),
    ],
    ids=["no training data", "no validation data", "unequal lengths", "two shapes", "no examples axis"],
)
def test_arrays_that_are_no_shard_are_refused_with_what_they_are(train, validation, says) -> None:
    with pytest.raises(ValueError, match=says):
        ArrayShard(train=train, validation=validation)


def test_joined_shards_have_the_examples_of_all_in_order() -> None:
    first = ArrayShard(train=(np.zeros((2, 1)), np.array([0, 1])), validation=(np.zeros((1, 1)), np.array([9])))
    second = ArrayShard(train=(np.ones((3, 1)), np.array([2, 3, 4])), validation=(np.zeros((1, 1)), np.array([8])))
    joined = JoinedShard([first, second])
    assert joined.train[1].tolist() == [0, 1, 2, 3, 4]
    assert joined.validation[1].tolist() == [9, 8]


def test_shards_of_different_shapes_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="cannot be offered as one"):
        JoinedShard(
            [
                ArrayShard(train=_rows(2), validation=_rows(1)),
                ArrayShard(train=_rows(2, width=3), validation=_rows(1, width=3)),
            ]
        )
    with pytest.raises(ValueError, match="no shard"):
        JoinedShard([])
