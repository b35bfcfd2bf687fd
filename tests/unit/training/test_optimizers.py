from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from federation.errors import PlanError
from federation.training.optimizers import OPTIMIZERS, make_optimizer

torch = pytest.importorskip("torch")


def _parameters(dtype: Any) -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((5, 3), (3,), (), (2, 2))]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sgd_moves_as_torch_does_to_the_bit(dtype: Any, options: dict[str, Any]) -> None:
    ours, theirs = _parameters(dtype), _parameters(dtype)
    plain, reference = make_optimizer("sgd", ours, 0.3, options), torch.optim.SGD(theirs, lr=0.3, **options)
    for _ in range(3):
        for one, other in zip(ours[:-1], theirs[:-1], strict=True):
            other.grad = torch.randn(other.shape).to(dtype)
            one.grad = other.grad.clone()
        plain.step()
        reference.step()

    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        kept, reference_kept = plain.state.get(one, {}), reference.state.get(other, {})
        assert kept.keys() == reference_kept.keys()
        assert all(torch.equal(kept[key], reference_kept[key]) for key in kept)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer_moves_as_torchs_own_does_to_the_bit(name: str, dtype: Any) -> None:
    ours, theirs = _parameters(dtype), _parameters(dtype)
    one, other = make_optimizer(name, ours, 0.01, {}), getattr(torch.optim, OPTIMIZERS[name])(theirs, lr=0.01)
    for _ in range(3):
        for mine, its in zip(ours[:-1], theirs[:-1], strict=True):
            its.grad = torch.randn(its.shape).to(dtype)
            mine.grad = its.grad.clone()
        one.step()
        other.step()
        one.zero_grad()
    assert all(mine.grad is None for mine in ours)
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine, its)
        kept, reference = one.state.get(mine, {}), other.state.get(its, {})
        assert {key: str(value) for key, value in kept.items()} == {key: str(value) for key, value in reference.items()}


def test_what_is_to_be_differentiated_through_its_steps_is_torchs_own() -> None:
    made = make_optimizer("adam", _parameters(torch.float32), 0.01, {"differentiable": True})
    assert type(made) is torch.optim.Adam


def test_no_optimizer_loads_torchs_compiler() -> None:
    code = (
        "import sys, torch; from federation.training.optimizers import OPTIMIZERS, make_optimizer\n"
        "weight = torch.nn.Parameter(torch.ones(2))\n"
        "for name in OPTIMIZERS:\n"
        "    weight.grad = torch.ones(2)\n"
        "    made = make_optimizer(name, [weight], 0.1, {})\n"
        "    made.step()\n"
        "    made.zero_grad()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
def test_sgd_takes_sparse_gradients(options: dict[str, Any]) -> None:
    ours, theirs = _parameters(torch.float32)[:1], _parameters(torch.float32)[:1]
    gradient = torch.sparse_coo_tensor([[1, 4]], torch.ones(2, 3), (5, 3), check_invariants=True)
    ours[0].grad, theirs[0].grad = gradient, gradient.clone()

    make_optimizer("sgd", ours, 0.3, options).step()
    torch.optim.SGD(theirs, lr=0.3, **options).step()

    assert torch.equal(ours[0], theirs[0])


def test_sgd_drops_gradients_and_then_stands_still() -> None:
    parameters = _parameters(torch.float32)
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    plain = make_optimizer("sgd", parameters, 0.3, {})

    plain.zero_grad()
    plain.step()

    assert all(parameter.grad is None for parameter in parameters)
    assert all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))


def test_sgd_of_nothing_is_refused_as_torch_refuses_it() -> None:
    with pytest.raises(PlanError, match="'sgd' does not take"):
        make_optimizer("sgd", [], 0.1, {})


@pytest.mark.parametrize("momentum", [-0.1, "much"])
def test_a_momentum_that_is_none_is_refused(momentum: Any) -> None:
    with pytest.raises(PlanError, match="'sgd' does not take"):
        make_optimizer("sgd", _parameters(torch.float32), 0.1, {"momentum": momentum})
