from __future__ import annotations

from typing import Any

import pytest

from federation.errors import PlanError
from federation.training.optimizers import make_optimizer

torch = pytest.importorskip("torch")


def _parameters(dtype: Any) -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((5, 3), (3,), (), (2, 2))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sgd_without_options_moves_as_torch_does_to_the_bit(dtype: Any) -> None:
    ours, theirs = _parameters(dtype), _parameters(dtype)
    plain, reference = make_optimizer("sgd", ours, 0.3, {}), torch.optim.SGD(theirs, lr=0.3)
    for _ in range(3):
        for one, other in zip(ours[:-1], theirs[:-1], strict=True):
            other.grad = torch.randn(other.shape).to(dtype)
            one.grad = other.grad.clone()
        plain.step()
        reference.step()

    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not plain.state


def test_sgd_without_options_takes_sparse_gradients() -> None:
    ours, theirs = _parameters(torch.float32)[:1], _parameters(torch.float32)[:1]
    gradient = torch.sparse_coo_tensor([[1, 4]], torch.ones(2, 3), (5, 3), check_invariants=True)
    ours[0].grad, theirs[0].grad = gradient, gradient.clone()

    make_optimizer("sgd", ours, 0.3, {}).step()
    torch.optim.SGD(theirs, lr=0.3).step()

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
