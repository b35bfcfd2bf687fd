from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.data import CsvShard, NpzShard
from federation.data.tables import split

TABLE = """age,weight,diagnosis
30,60,benign
40,70,malignant
50,80,benign
60,90,malignant
70,100,benign
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text(TABLE)
    return path


def test_a_table_becomes_features_and_class_numbers(table) -> None:
    shard = CsvShard(table, "diagnosis", classes=["benign", "malignant"], scale={"age": (0, 100)})
    samples = np.concatenate([shard.train[0], shard.validation[0]])
    targets = np.concatenate([shard.train[1], shard.validation[1]])
    assert samples.dtype == np.float32
    assert targets.dtype == np.int64
    assert sorted(samples[:, 0].tolist()) == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert sorted(samples[:, 1].tolist()) == [60, 70, 80, 90, 100]
    assert sorted(samples[targets == 1, 0].tolist()) == pytest.approx([0.4, 0.6])


def test_features_come_in_the_order_asked_for(table) -> None:
    shard = CsvShard(table, "age", features=["weight"])
    assert shard.sample_shape == (1,)
    assert shard.train[1].dtype == np.float32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "outcome"}, "no column 'outcome'; it has age, weight, diagnosis"),
        ({"target": "age", "features": ["height"]}, "no column 'height'"),
        ({"target": "age"}, "row 2, column 'diagnosis': not a number"),
        ({"target": "diagnosis", "classes": ["benign"]}, "row 3, column 'diagnosis': not one of benign"),
        ({"target": "age", "features": ["weight"], "scale": {"weight": (5, 5)}}, "scale of 'weight'"),
        ({"target": "age", "features": ["weight"], "validation": 1.5}, "between 0 and 1"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_place(table, options, says) -> None:
    with pytest.raises(ValueError, match=says):
        CsvShard(table, **options)


def test_an_error_does_not_repeat_a_patients_value(table) -> None:
    with pytest.raises(ValueError, match="not a number") as caught:
        CsvShard(table, "age")
    assert "benign" not in str(caught.value)


def test_a_ragged_and_an_empty_table_and_missing_numbers_are_refused(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match="row 3: 1 fields"):
        CsvShard(path, "b")
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="no rows"):
        CsvShard(path, "b")
    path.write_text("a,b\n1,2\nnan,3\n")
    with pytest.raises(ValueError, match="finite"):
        CsvShard(path, "b")


def test_arrays_of_a_folder_are_joined(tmp_path) -> None:
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=np.full((4, 2), number), y=np.full(4, number))
    shard = NpzShard(tmp_path, validation=0.25)
    assert (len(shard.train[0]), len(shard.validation[0])) == (9, 3)


def test_a_folder_without_arrays_or_with_others_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no \.npz"):
        NpzShard(tmp_path)
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match="no array 'x'; it has images"):
        NpzShard(tmp_path)


def test_pickled_arrays_are_not_loaded(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(ValueError, match="allow_pickle"):
        NpzShard(tmp_path)


@given(count=st.integers(2, 80), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_a_split_is_whole_disjoint_and_leaves_both_sides_something(count, share, seed) -> None:
    rows = (np.arange(count), np.arange(count))
    train, held = split(rows, share, seed)
    assert sorted([*train[0].tolist(), *held[0].tolist()]) == list(range(count))
    assert len(train[0]) >= 1
    assert len(held[0]) >= 1
    assert split(rows, share, seed)[0][0].tolist() == train[0].tolist()
