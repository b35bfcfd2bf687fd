from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.errors import StorageError
from federation.tensors import DType
from federation.training.state import LocalState, StateStore


def _state(value: float) -> LocalState:
    return LocalState(tensors={"head": np.full(2, value)}, optimizer={"head/step": np.asarray(value, np.float32)})


def test_state_that_counted_is_kept_also_after_a_restart(tmp_path) -> None:
    store = StateStore(tmp_path)
    store.set_pending(1, 1, _state(1))
    assert store.kept == LocalState()
    again = StateStore(tmp_path)
    again.settle(1, 1, counted=True)
    for one in (again, StateStore(tmp_path)):
        assert one.kept.tensors["head"].tolist() == [1, 1]
        assert one.kept.optimizer["head/step"].item() == 1


def test_state_that_did_not_count_is_dropped(tmp_path) -> None:
    store = StateStore(tmp_path)
    store.set_pending(1, 1, _state(1))
    store.settle(1, 1, counted=True)
    store.set_pending(2, 1, _state(2))
    store.settle(2, 1, counted=False)
    for one in (store, StateStore(tmp_path)):
        assert one.kept.tensors["head"].tolist() == [1, 1]
        assert one.of_round(2).tensors["head"].tolist() == [1, 1]


def test_a_verdict_on_another_attempt_or_round_or_a_repeated_one_settles_nothing(tmp_path) -> None:
    store = StateStore(tmp_path)
    store.set_pending(3, 2, _state(1))
    store.settle(3, 1, counted=True)
    store.settle(2, 2, counted=False)
    assert store.of_round(3).tensors["head"].tolist() == [1, 1]
    assert store.kept == LocalState()
    store.settle(3, 2, counted=True)
    store.settle(3, 2, counted=False)
    assert store.kept.tensors["head"].tolist() == [1, 1]


def test_the_model_of_a_round_belongs_to_the_state_that_round_left(tmp_path) -> None:
    store = StateStore(tmp_path)
    store.set_pending(1, 1, _state(1))
    store.settle(1, 1, counted=True)
    store.set_pending(2, 1, _state(2))
    assert store.of_round(2).tensors["head"].tolist() == [2, 2]
    assert store.of_round(1).tensors["head"].tolist() == [1, 1]


def test_state_without_tensors_touches_no_disk(tmp_path) -> None:
    StateStore(tmp_path).set_pending(1, 1, LocalState())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", list(DType), ids=lambda dtype: dtype.value)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype) -> None:
    value = np.array([0, 1, 1, 0]).astype(dtype.numpy)
    StateStore(tmp_path).set_pending(1, 1, LocalState(tensors={"x": value, "y": value.reshape(2, 2)}))
    got = StateStore(tmp_path).of_round(1).tensors
    assert got["x"].dtype == dtype.numpy
    assert got["y"].tobytes() == value.tobytes()
    assert got["y"].shape == (2, 2)


def test_a_state_file_that_is_broken_is_an_error_and_not_a_fresh_start(tmp_path) -> None:
    store = StateStore(tmp_path)
    store.set_pending(1, 1, _state(1))
    store.settle(1, 1, counted=True)
    path = tmp_path / "kept.state"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="cannot be read"):
        StateStore(tmp_path)


def test_state_that_cannot_be_written_is_not_pending(tmp_path) -> None:
    store = StateStore(tmp_path / "missing")
    with pytest.raises(StorageError):
        store.set_pending(1, 1, _state(1))
    assert store.of_round(1) == LocalState()


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.sampled_from(["counted", "not counted"]), st.integers(1, 3), st.integers(1, 2)),
        st.just(("restart", 0, 0)),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(steps=_STEPS)
def test_kept_state_is_always_the_last_pending_one_that_counted(tmp_path_factory, steps) -> None:
    folder = tmp_path_factory.mktemp("state")
    store = StateStore(folder)
    kept, pending, value = None, None, 0.0
    for step, number, attempt in steps:
        if step == "train":
            value += 1
            store.drop_pending()
            store.set_pending(number, attempt, _state(value))
            pending = (number, attempt, value)
        elif step == "restart":
            store = StateStore(folder)
        elif pending is not None and pending[:2] == (number, attempt):
            kept = pending[2] if step == "counted" else kept
            pending = None
            store.settle(number, attempt, counted=step == "counted")
        else:
            store.settle(number, attempt, counted=step == "counted")
        got = store.kept.tensors.get("head")
        assert (None if got is None else got[0]) == kept


@pytest.mark.parametrize("durable", [True, False])
def test_what_a_method_keeps_is_settled_like_the_rest(tmp_path, durable: bool) -> None:
    folder = tmp_path / "made" if not durable else tmp_path
    method = {"control/layer.weight": np.ones(3), "feedback.delta/error/layer.weight": np.full(3, 2.0)}
    StateStore(folder, durable=durable).set_pending(4, 1, LocalState(method=method))
    store = StateStore(folder, durable=durable)
    store.settle(4, 1, counted=True)
    for one in (store, StateStore(folder, durable=durable)):
        assert {key: value.tolist() for key, value in one.kept.method.items()} == {
            key: value.tolist() for key, value in method.items()
        }
        assert not one.kept.tensors


def test_state_without_a_folder_lives_in_its_object() -> None:
    store = StateStore(None)
    store.set_pending(1, 1, _state(1))
    store.settle(1, 1, counted=True)
    assert store.kept.tensors["head"].tolist() == [1, 1]
    store.set_pending(2, 1, _state(2))
    store.settle(2, 1, counted=False)
    assert store.kept.tensors["head"].tolist() == [1, 1]
