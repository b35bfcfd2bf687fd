"""The backward pass of a step."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from federation.training.torch_steps import go_back  # noqa: E402 - it needs torch


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_gradients_are_those_of_torchs_own_way_to_the_bit_and_are_added_up(dtype: str) -> None:
    torch.manual_seed(1)
    models = [torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    samples, targets = torch.randn(7, 5).to(getattr(torch, dtype)), torch.arange(7) % 3
    for model, back in zip(models, (go_back, torch.Tensor.backward), strict=True):
        model.to(samples.dtype)
        for share in (1.0, 0.25):
            back(torch.nn.functional.cross_entropy(model(samples), targets) * share)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("loss", [torch.zeros(()), torch.zeros(3, requires_grad=True) * 2])
def test_what_has_no_gradient_is_refused_as_torch_refuses_it(loss: object) -> None:
    with pytest.raises(RuntimeError, match="grad"):
        go_back(loss)  # type: ignore[arg-type]


class Marked(torch.Tensor):
    """A loss of a class of the author's own, which torch asks how it goes back."""


def test_a_loss_of_another_class_goes_torchs_own_way() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    go_back((weight * 3).sum().as_subclass(Marked))
    assert weight.grad.tolist() == [3.0, 3.0]
