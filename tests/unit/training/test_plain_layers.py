"""The short way to gradients: where it is taken it gives torch's bytes, and everything else goes torch's own way."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import SupervisedTask
from federation.data import ArrayShard, LocalData
from federation.names import SiteName
from federation.training.context import RoundContext

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - it needs torch
from torch.nn.utils import parametrizations  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from federation.training import plain_layers  # noqa: E402
from federation.training.plain_layers import PlainLayers  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

WIDTHS = [(64, 32, 10), (5, 3), (7, 2, 1), (2, 2, 2), (33, 65, 17, 3), (300, 200, 4)]


def _model(*widths: int, dtype: Any = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _batch(model: nn.Sequential, examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, last = model[1], model[-1]
    sample = torch.randn(examples, first.in_features, dtype=first.weight.dtype)
    return sample, torch.randint(0, last.out_features, (examples,))


def _torchs_own(model: nn.Module, sample: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(sample)
    loss = nn.functional.cross_entropy(output, target)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), output.detach()


def _taken(model: nn.Module) -> list[bytes]:
    """Return the gradients, and leave none."""
    found = [parameter.grad.numpy().tobytes() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("widths", WIDTHS)
def test_loss_output_and_gradients_are_torchs_to_the_bit(widths: tuple[int, ...], dtype: Any, threads: int) -> None:
    model = _model(*widths, dtype=dtype)
    layers = PlainLayers.of(model, model.parameters())
    assert layers is not None
    with _threads(threads):
        for examples in (1, 2, 15, 33, 128):
            for _ in range(plain_layers.PROOFS):
                assert not layers.is_proven(examples)
                batch = _batch(model, examples)
                assert layers.takes(model, *batch)
                _torchs_own(model, *batch)
                layers.prove(*batch)
                model.zero_grad()
            assert layers.is_proven(examples)
            for scale in (1.0, 0.3, 30.0, 1e-30, 1e15):
                sample, target = _batch(model, examples)
                expected = [each.numpy().tobytes() for each in _torchs_own(model, sample * scale, target)]
                gradients = _taken(model)
                assert [each.numpy().tobytes() for each in layers.go_back(sample * scale, target)] == expected
                assert _taken(model) == gradients


@pytest.mark.parametrize("targets", [[-100, 2, -100], [-100, -100, -100]])
def test_targets_that_do_not_count_count_as_torch_has_it(targets: list[int]) -> None:
    model = _model(4, 3)
    layers = PlainLayers.of(model, model.parameters())
    assert layers is not None
    sample, target = torch.ones(3, 4), torch.tensor(targets)
    _torchs_own(model, sample, target)
    expected = _taken(model)
    layers.go_back(sample, target)
    assert _taken(model) == expected


def _data(examples: int) -> LocalData:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(examples, 2, 3)).astype(np.float32), rng.integers(0, 4, examples)
    return LocalData(ArrayShard(train=rows, validation=rows))


def _round(number: int, rate: float) -> RoundContext:
    return RoundContext(
        number=number, site=SiteName("north"), seed=5, epochs=2, steps=None, learning_rate=rate, threads=1
    )


@pytest.mark.parametrize("rate", [0.01, 0.7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer_options": {"momentum": 0.9, "weight_decay": 0.01}, "metrics": ("accuracy", "gradient_norm")},
        {"optimizer": "adam", "max_gradient_norm": 0.3},
        {"batch_size": 1},
    ],
)
def test_training_moves_a_model_as_one_that_is_watched_and_so_goes_torchs_own_way(
    options: dict[str, Any], rate: float
) -> None:
    ways = []
    for is_watched in (False, True):
        model = _model(6, 8, 4)
        if is_watched:
            model[1].register_forward_hook(lambda *_: None)
        task = SupervisedTask(**{"batch_size": 5, **options})
        metrics = [dict(task.train(model, _data(18), _round(number, rate))) for number in range(1, 5)]
        ways.append((metrics, [each.detach().numpy().tobytes() for each in model.parameters()]))
    assert ways[0] == ways[1]


def test_a_method_sees_and_corrects_the_same_gradients() -> None:
    ways = []
    for is_watched in (False, True):
        model, seen = _model(6, 8, 4), []
        if is_watched:
            model[1].register_forward_hook(lambda *_: None)

        def correct(step: Any, seen: list[bytes] = seen) -> None:
            seen.extend(value.tobytes() for value in step.gradients.values())
            for value in step.gradients.values():
                value *= 0.5

        SupervisedTask(batch_size=5).problem(model, _data(18), _round(1, 0.1)).run(gradient=correct)
        ways.append((seen, [each.detach().numpy().tobytes() for each in model.parameters()]))
    assert ways[0] == ways[1]


def test_a_torch_that_computes_otherwise_is_noticed_and_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_layers, "_relu_back", lambda back, after, threshold: back * 1.0)
    ways = []
    for is_watched in (False, True):
        model = _model(6, 8, 4)
        if is_watched:
            model[1].register_forward_hook(lambda *_: None)
        SupervisedTask(batch_size=5).train(model, _data(58), _round(1, 0.1))
        ways.append([each.detach().numpy().tobytes() for each in model.parameters()])
    assert ways[0] == ways[1]


class _OwnLinear(nn.Linear):
    pass


class _OwnSequential(nn.Sequential):
    pass


class _OwnParameter(nn.Parameter):
    pass


def _with_its_own_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].weight = _OwnParameter(torch.ones(2, 3))
    return model


def _shared() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def _added() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[1].register_parameter("slope", nn.Parameter(torch.ones(1)))
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(3, 2),
        lambda: nn.Sequential(),
        lambda: nn.Sequential(nn.Flatten(), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Flatten()),
        lambda: nn.Sequential(nn.Linear(3, 2, bias=False)),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 2))),
        lambda: nn.Sequential(_OwnLinear(3, 2)),
        lambda: _OwnSequential(nn.Linear(3, 2)),
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))),
        lambda: nn.Sequential(nn.Linear(3, 2, dtype=torch.bfloat16)),
        lambda: nn.Sequential(nn.Linear(1000, 1000)),
        lambda: nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)),
        _shared,
        _tied,
        _added,
        _with_its_own_parameter,
    ],
)
def test_there_is_no_short_way_through_any_other_model(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert PlainLayers.of(model, model.parameters()) is None


class _Functions(TorchFunctionMode):
    pass


class _Operations(TorchDispatchMode):
    pass


def _hook(*_: Any) -> None:
    pass


def _is_taken(model: nn.Sequential, sample: torch.Tensor | None = None, target: torch.Tensor | None = None) -> bool:
    layers = PlainLayers.of(model, model.parameters())
    assert layers is not None
    own = _batch(model, 3)
    return layers.takes(model, own[0] if sample is None else sample, own[1] if target is None else target)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.register_forward_hook(_hook),
        lambda model: model[1].register_forward_pre_hook(_hook),
        lambda model: model[2].register_full_backward_hook(_hook),
        lambda model: model[3].register_full_backward_pre_hook(_hook),
        lambda model: model[1].weight.register_hook(_hook),
        lambda model: model[1].bias.register_post_accumulate_grad_hook(_hook),
        lambda model: model[1].weight.requires_grad_(False),
        lambda model: setattr(model[1].weight, "grad", torch.zeros(4, 5)),
        lambda model: setattr(model[1].weight, "data", torch.zeros(5, 4).t()),
        lambda model: setattr(model[1], "forward", torch.relu),
        lambda model: setattr(model, "forward", torch.relu),
        lambda model: setattr(model[0], "end_dim", 1),
        lambda model: setattr(model[3], "__class__", _OwnLinear),
        lambda model: setattr(model[3], "weight", nn.Parameter(torch.zeros(2, 4))),
        lambda model: model.__setitem__(2, nn.Tanh()),
        lambda model: model.append(nn.ReLU()),
    ],
)
def test_what_was_done_to_a_model_later_is_noticed(change: Callable[[nn.Sequential], object]) -> None:
    model = _model(5, 4, 2)
    layers = PlainLayers.of(model, model.parameters())
    assert layers is not None
    assert layers.takes(model, *_batch(model, 3))
    change(model)
    assert not layers.takes(model, torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize(
    "scope",
    [
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.autograd.detect_anomaly,
        torch.autograd.graph.save_on_cpu,
        _Functions,
        _Operations,
    ],
)
def test_a_step_under_anything_that_changes_operations_goes_torchs_own_way(
    scope: Callable[[], AbstractContextManager[object]],
) -> None:
    model = _model(5, 4, 2)
    layers, batch = PlainLayers.of(model, model.parameters()), _batch(model, 3)
    assert layers is not None
    for around, expected in ((nullcontext, True), (scope, False), (nullcontext, True)):
        with around():
            assert layers.takes(model, *batch) is expected


def test_a_hook_on_all_modules_is_noticed() -> None:
    model = _model(5, 4, 2)
    handle = nn.modules.module.register_module_forward_hook(_hook)
    try:
        assert not _is_taken(model)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("sample", "target"),
    [
        (torch.zeros(3, 6), None),
        (torch.zeros(3, 5, dtype=torch.float64), None),
        (torch.zeros(5, 3).t(), None),
        (torch.zeros(3, 5, requires_grad=True), None),
        (torch.zeros(15), None),
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)),
        (None, torch.zeros(2, dtype=torch.int64)),
        (None, torch.zeros(3, dtype=torch.int32)),
        (None, torch.zeros(3, 2)),
        (None, torch.zeros(3, 1, dtype=torch.int64)),
    ],
)
def test_a_batch_the_first_layer_or_the_loss_would_ask_about_goes_torchs_own_way(
    sample: torch.Tensor | None, target: torch.Tensor | None
) -> None:
    assert not _is_taken(_model(5, 4, 2), sample, target)


def test_a_size_for_which_a_gradient_once_differed_stays_with_torch() -> None:
    model = _model(5, 4, 2)
    layers = PlainLayers.of(model, model.parameters())
    assert layers is not None
    for difference in (0, 1, 0, 0, 0, 0):
        _torchs_own(model, *(batch := _batch(model, 3)))
        model[1].weight.grad += difference
        layers.prove(*batch)
        model.zero_grad()
    assert not layers.is_proven(3)
