from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.data import ArrayShard, LocalData


def _data(count: int) -> LocalData:
    rows = (np.arange(count, dtype=np.float32)[:, None], np.arange(count))
    return LocalData(ArrayShard(train=rows, validation=(rows[0][:1], rows[1][:1])))


@given(count=st.integers(1, 60), size=st.integers(1, 20), seed=st.none() | st.integers(0, 9))
def test_a_pass_is_a_permutation_in_batches_of_which_none_but_an_only_one_is_a_single_example(
    count, size, seed
) -> None:
    data = _data(count)
    batches = [targets for _, targets in data.batches(size, None if seed is None else np.random.default_rng(seed))]
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    if size > 1 and count > 1:
        assert all(1 < len(batch) <= size + 1 for batch in batches)
    assert data.batches_drawn == len(batches)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_the_sizes_of_batches_are_known_before_they_are_drawn(batch_size: int) -> None:
    for examples in range(1, 20):
        rows = np.zeros((examples, 1), np.float32)
        data = LocalData(ArrayShard(train=(rows, rows), validation=(rows, rows)))
        assert data.batch_sizes(batch_size) == {len(batch[0]) for batch in data.batches(batch_size)}


def test_the_same_generator_gives_the_same_order_and_another_seed_another() -> None:
    def order(seed: int) -> list[int]:
        batches = _data(50).batches(8, np.random.default_rng(seed))
        return [int(target) for _, targets in batches for target in targets]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_examples_used_are_the_distinct_ones_drawn_or_all_if_none_was() -> None:
    data = _data(10)
    assert data.examples_used == 10
    drawing = data.batches(4, np.random.default_rng(0))
    next(drawing)
    assert data.examples_used == 4
    list(drawing)
    list(data.batches(4, np.random.default_rng(1)))
    assert data.examples_used == 10
    data.start_count()
    assert (data.examples_used, data.batches_drawn) == (10, 0)


def test_one_batch_of_all_examples_counts_all_and_one_of_chosen_ones_those() -> None:
    data = _data(10)
    list(data.batches(4, chosen=np.array([3, 1, 3])))
    assert data.examples_used == 2
    list(data.batches(16, np.random.default_rng(0)))
    assert (data.examples_used, data.batches_drawn, data.examples_drawn) == (10, 2, 13)
    data.start_count()
    list(data.batches(16, chosen=np.array([3, 1])))
    assert data.examples_used == 2


def test_drawing_validation_data_does_not_count_as_training() -> None:
    data = _data(10)
    list(data.batches(4, part="validation"))
    assert data.batches_drawn == 0


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        next(_data(3).batches(0))


def test_datasets_of_torch_give_stacked_tensors() -> None:
    torch = pytest.importorskip("torch")

    class Shard:
        train = torch.utils.data.TensorDataset(torch.arange(6.0)[:, None], torch.arange(6))
        validation = train
        sample_shape = (1,)
        target_shape = ()
        description = ""

    samples, targets = next(LocalData(Shard()).batches(4))
    assert torch.equal(samples, torch.arange(4.0)[:, None])
    assert torch.equal(targets, torch.arange(4))
