"""A plain run of plain layers leaves what the long way leaves, to the bit; whatever is not plain goes the long way."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import SupervisedTask
from federation.data import ArrayShard, LocalData
from federation.names import SiteName
from federation.training.context import RoundContext

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - it needs torch

from federation.training import plain_run  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

RNG = np.random.default_rng(5)


def _data(examples: int, dtype: Any = np.float32) -> LocalData:
    x, y = RNG.normal(size=(examples, 2, 3)).astype(dtype), RNG.integers(0, 4, size=examples)
    return LocalData(ArrayShard(train=(x, y), validation=(x, y)))


def _round(number: int, **changes: object) -> RoundContext:
    fields = {"number": number, "site": SiteName("north"), "seed": 0, "epochs": 2, "steps": None, "learning_rate": 0.1}
    return RoundContext(**{**fields, "threads": 1, **changes})  # type: ignore[arg-type]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def _bytes(model: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rounds that went the short way."""
    rounds: list[int] = []
    real = plain_run.train

    def noted(layers: Any, data: LocalData, batch_size: int, round: RoundContext) -> dict[str, float]:
        rounds.append(round.number)
        return real(layers, data, batch_size, round)

    monkeypatch.setattr(plain_run, "train", noted)
    yield rounds


@pytest.mark.parametrize("examples", [1, 7, 8, 9, 17, 20])
def test_weights_loss_and_counts_are_those_of_the_long_way(examples: int, taken: list[int]) -> None:
    task, model, data = SupervisedTask(batch_size=8), _net(), _data(examples)
    long, other, same = SupervisedTask(batch_size=8), copy.deepcopy(model), copy.copy(data)
    for number in range(1, 7):
        data.start_count()
        same.start_count()
        reported = task.train(model, data, _round(number))
        assert reported == dict(long.problem(other, same, _round(number)).run().metrics)
        assert _bytes(model) == _bytes(other)
        assert (data.batches_drawn, data.examples_drawn, data.examples_used) == (
            same.batches_drawn,
            same.examples_drawn,
            same.examples_used,
        )
    assert taken and taken[-1] == 6
    assert 1 not in taken  # what proves goes the long way


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"optimizer_options": {"momentum": 0.9}}, {}),
        ({"optimizer": "adam"}, {}),
        ({"metrics": ("accuracy",)}, {}),
        ({"max_gradient_norm": 1.0}, {}),
        ({"loss": nn.functional.cross_entropy}, {}),
        ({}, {"epochs": None, "steps": 4}),
        ({}, {"estimator": "full"}),
    ],
)
def test_a_run_that_is_not_plain_goes_the_long_way(
    options: dict[str, Any], changes: dict[str, Any], taken: list[int]
) -> None:
    task, model, data = SupervisedTask(**{"batch_size": 8, **options}), _net(), _data(16)
    for number in range(1, 6):
        task.train(model, data, _round(number, **changes))
    assert not taken


def test_a_size_of_batch_that_is_not_proven_yet_goes_the_long_way(taken: list[int]) -> None:
    task, model = SupervisedTask(batch_size=8), _net()
    for number in range(1, 5):
        task.train(model, _data(16), _round(number))
    before = list(taken)
    task.train(model, _data(20), _round(5))
    assert before
    assert taken == before


def test_a_hook_that_comes_later_is_called_on_the_long_way(taken: list[int]) -> None:
    task, model, data, seen = SupervisedTask(batch_size=8), _net(), _data(16), []
    for number in range(1, 5):
        task.train(model, data, _round(number))
    before = list(taken)
    model[1].register_forward_hook(lambda *_: seen.append(1))
    task.train(model, data, _round(5))
    assert before
    assert (taken, len(seen)) == (before, 4)


def test_samples_of_another_dtype_are_converted_on_the_long_way(taken: list[int]) -> None:
    task, model, data = SupervisedTask(batch_size=8), _net(), _data(16, np.float64)
    for number in range(1, 6):
        task.train(model, data, _round(number))
    assert not taken


def test_data_that_is_read_only_trains_without_a_warning(taken: list[int]) -> None:
    task, model, data = SupervisedTask(batch_size=8), _net(), _data(16)
    for part in data.train:
        part.flags.writeable = False
    for number in range(1, 6):
        task.train(model, data, _round(number))
    assert taken
