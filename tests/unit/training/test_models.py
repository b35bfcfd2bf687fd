from __future__ import annotations

import numpy as np
import pytest

from federation.errors import PlanError
from federation.tensors import DType
from federation.training.models import Kind, adapt

torch = pytest.importorskip("torch")
nn = torch.nn


def test_writing_into_an_array_writes_into_the_dictionary() -> None:
    model = {"w": np.zeros(2), "n": np.zeros((), np.int32)}
    adapter = adapt(model)
    adapter.arrays()["w"][:] = 7
    assert model["w"].tolist() == [7, 7]
    assert adapter.kinds == {"w": Kind.TRAINED, "n": Kind.BUFFER}


def test_an_entry_the_task_bound_anew_is_the_one_that_is_read() -> None:
    model = {"w": np.zeros((2, 3))}
    adapter = adapt(model)
    model["w"] = np.ones((3, 2)).T
    assert adapter.arrays()["w"].flags.c_contiguous
    assert adapter.arrays()["w"].sum() == 6


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros(2), "from float32.* to float64"),
        (np.zeros(3, np.float32), r"\(2,\) to float32\(3,\)"),
        ([0.0, 0.0], "is a list"),
    ],
    ids=["dtype", "shape", "kind"],
)
def test_a_task_that_changes_what_an_entry_is_is_told(value, says) -> None:
    model = {"w": np.zeros(2, np.float32)}
    adapter = adapt(model)
    model["w"] = value
    with pytest.raises(PlanError, match=says):
        adapter.arrays()


def test_a_task_that_adds_or_removes_entries_is_told() -> None:
    model = {"w": np.zeros(2)}
    adapter = adapt(model)
    model["v"] = np.zeros(1)
    with pytest.raises(PlanError, match="'v'"):
        adapter.arrays()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_of_every_float_type_are_seen_without_a_copy(dtype) -> None:
    model = nn.Linear(3, 2).to(getattr(torch, dtype))
    arrays = adapt(model).arrays()
    assert DType.of(arrays["weight"].dtype).value == dtype
    arrays["weight"][...] = 1.5
    assert model.weight.detach().float().sum().item() == 9.0


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "bool"])
def test_buffers_of_every_other_type_are_seen(dtype) -> None:
    model = nn.Module()
    model.register_buffer("seen", torch.zeros((), dtype=getattr(torch, dtype)))
    adapter = adapt(model)
    assert DType.of(adapter.arrays()["seen"].dtype).value == dtype
    adapter.arrays()["seen"][...] = 1
    assert model.seen.item() == 1


def test_tied_parameters_count_once_and_passing_buffers_not_at_all() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2, bias=False)
            self.second = nn.Linear(2, 2, bias=False)
            self.second.weight = self.first.weight
            self.register_buffer("cache", torch.zeros(3), persistent=False)

    assert list(adapt(Tied()).arrays()) == ["first.weight"]


def test_a_tensor_that_is_not_contiguous_is_made_so_and_stays_the_models() -> None:
    model = nn.Linear(2, 3)
    model.weight.data = torch.arange(6.0).reshape(2, 3).T
    arrays = adapt(model).arrays()
    assert arrays["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    arrays["weight"][0, 0] = 9
    assert model.weight[0, 0].item() == 9


def test_a_module_the_task_cast_to_another_type_is_noticed() -> None:
    model = nn.Linear(2, 1)
    adapter = adapt(model)
    model.double()
    with pytest.raises(PlanError, match="to float64"):
        adapter.arrays()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.LazyLinear(3), "has no shape yet"),
        (lambda: nn.Linear(2, 1, dtype=torch.complex64), "complex"),
        (lambda: nn.Linear(2, 1, device="meta"), "meta"),
    ],
    ids=["lazy", "complex", "meta"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_tensors_that_cannot_be_federated_are_named(make, says) -> None:
    with pytest.raises(PlanError, match=says):
        adapt(make())


class Bottleneck(nn.Module):
    """One block of a ResNet (arXiv:1512.03385, figure 5, right), as far as its tensors go."""

    def __init__(self, received: int, width: int) -> None:
        super().__init__()
        sizes = [(received, width, 1), (width, width, 3), (width, 4 * width, 1)]
        self.convolutions = nn.ModuleList(nn.Conv2d(*size, bias=False) for size in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(given) for _, given, _ in sizes)
        if received != 4 * width:
            self.shortcut = nn.Sequential(nn.Conv2d(received, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))


def test_resnet_152_for_feature_extraction_trains_its_last_layer_and_freezes_the_rest() -> None:
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64)]
        received = 64
        for width, blocks in ((64, 3), (128, 8), (256, 36), (512, 3)):
            for _ in range(blocks):
                layers.append(Bottleneck(received, width))
                received = 4 * width
        model = nn.Sequential(*layers, nn.Linear(received, 10))
    model.to_empty(device="cpu")  # memory that nobody touches
    assert _elements(model) == {Kind.TRAINED: 58_164_298}
    model[:-1].requires_grad_(requires_grad=False)
    assert _elements(model) == {Kind.TRAINED: 20_490, Kind.FROZEN: 58_143_808}


def _elements(model: nn.Module) -> dict[Kind, int]:
    adapter, found = adapt(model), dict[Kind, int]()
    for name, array in adapter.arrays().items():
        if adapter.kinds[name] is not Kind.BUFFER:
            found[adapter.kinds[name]] = found.get(adapter.kinds[name], 0) + array.size
    return found
