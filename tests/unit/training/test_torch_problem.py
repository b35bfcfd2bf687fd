from __future__ import annotations

import math
import time

import numpy as np
import pytest

from federation import SupervisedTask
from federation.algorithms.client import OptimizerChoice, Step
from federation.data import ArrayShard, LocalData
from federation.errors import PlanError
from federation.names import SiteName
from federation.training.context import RoundContext
from federation.training.optimizers import OPTIMIZERS

torch = pytest.importorskip("torch")

EXAMPLES = 10


def _data() -> LocalData:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(EXAMPLES, 3)).astype(np.float32), rng.integers(0, 2, EXAMPLES)
    return LocalData(ArrayShard(train=rows, validation=rows))


def _model(*, dropout: float = 0.0, batch_norm: bool = False) -> torch.nn.Sequential:
    torch.manual_seed(1)
    layers: list[torch.nn.Module] = [torch.nn.Linear(3, 4)]
    if batch_norm:
        layers.append(torch.nn.BatchNorm1d(4))
    return torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(4, 2))


def _round(**changes: object) -> RoundContext:
    values: dict[str, object] = {
        "number": 1,
        "site": SiteName("north"),
        "seed": 5,
        "epochs": 2,
        "steps": None,
        "learning_rate": 0.1,
        "threads": 1,
    }
    return RoundContext(**{**values, **changes})  # type: ignore[arg-type]


def _task(**changes: object) -> SupervisedTask:
    return SupervisedTask(**{"batch_size": 4, "metrics": ("accuracy",), **changes})  # type: ignore[arg-type]


def _bits(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def _trained(task: SupervisedTask, context: RoundContext, model: torch.nn.Module, **run: object) -> dict[str, bytes]:
    task.problem(model, _data(), context).run(**run)  # type: ignore[arg-type]
    return _bits(model)


def test_a_correction_that_changes_nothing_changes_no_bit() -> None:
    task = _task(optimizer_options={"momentum": 0.9, "weight_decay": 0.1}, max_gradient_norm=0.5)
    plain, hooked = _model(dropout=0.3, batch_norm=True), _model(dropout=0.3, batch_norm=True)
    task.train(plain, _data(), _round())

    def nothing(step: Step) -> None:
        step.gradients += 0.0 * (step.parameters - step.parameters)

    assert _trained(task, _round(), hooked, gradient=nothing) == _bits(plain)


def test_a_correction_is_added_to_the_gradient_exactly() -> None:
    model = _model()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    def instead(step: Step) -> None:
        for gradient in step.gradients.values():
            gradient[...] = 2.0

    problem = _task().problem(model, _data(), _round())
    run = problem.run(gradient=instead, steps=1)
    assert (run.steps, run.oracle_calls, run.passes) == (1, 4, 0)
    assert run.learning_rate_sum == 0.1
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor.detach(), before[name] - 0.1 * 2.0)


def test_a_parameter_without_a_gradient_is_left_alone_unless_the_method_writes_one() -> None:
    model = _model()
    model.unused = torch.nn.Parameter(torch.ones(2))
    task = _task(optimizer_options={"weight_decay": 0.5})
    _trained(task, _round(), model, gradient=lambda step: None, steps=1)
    assert model.unused.tolist() == [1.0, 1.0]

    def pull(step: Step) -> None:
        step.gradients["unused"][...] = 1.0

    _trained(_task(), _round(), model, gradient=pull, steps=1)
    np.testing.assert_allclose(model.unused.detach().numpy(), 0.9)


def test_the_full_gradient_is_that_of_the_whole_data_and_disturbs_nothing() -> None:
    model, data = _model(dropout=0.5, batch_norm=True), _data()
    before = _bits(model)
    problem = _task(evaluation_batch_size=EXAMPLES).problem(model, data, _round())
    stream = torch.get_rng_state()
    gradient, loss = problem.gradient(estimator="full")
    assert torch.equal(torch.get_rng_state(), stream)
    assert _bits(model) == before
    assert problem.oracle_calls == EXAMPLES
    assert data.examples_drawn == 0

    model.train()
    samples, targets = (torch.as_tensor(each) for each in data.train)
    expected = torch.nn.functional.cross_entropy(model(samples), targets.long())
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, tensor in model.named_parameters():
        np.testing.assert_array_equal(gradient[name], tensor.grad.numpy())


def test_batches_of_a_full_gradient_are_weighed_by_their_examples() -> None:
    whole, parts = (
        _task(evaluation_batch_size=size).problem(_model(), _data(), _round()).gradient(estimator="full")
        for size in (EXAMPLES, 4)
    )
    assert parts[1] == pytest.approx(whole[1], rel=1e-6)
    for name, value in whole[0].items():
        np.testing.assert_allclose(parts[0][name], value, rtol=1e-5, atol=1e-7)


def test_a_subset_estimator_is_unbiased() -> None:
    problem = _task().problem(_model(), _data(), _round())
    full = problem.gradient(estimator="full")[0]
    draws = [problem.gradient(estimator="subset:3", purpose=f"draw {k}")[0] for k in range(400)]
    for name, value in full.items():
        stack = np.stack([draw[name] for draw in draws]).astype(float)
        error = stack.std(axis=0) / math.sqrt(len(draws))
        assert (np.abs(stack.mean(axis=0) - value) <= 5 * error + 1e-6).all()


@pytest.mark.parametrize(("estimator", "steps"), [("full", 2), ("subset:4", 6), ("minibatch", 6)])
def test_a_pass_takes_as_many_steps_as_its_estimator_needs(estimator: str, steps: int) -> None:
    run = _task().problem(_model(), _data(), _round(estimator=estimator)).run()
    assert run.steps == steps
    assert run.passes == 2


def test_a_full_step_is_a_step_along_the_full_gradient() -> None:
    model = _model()
    problem = _task().problem(model, _data(), _round(estimator="full"))
    gradient, _ = problem.gradient(estimator="full")
    start = problem.parameters.copy()
    problem.run(steps=1)
    for name, value in problem.parameters.items():
        np.testing.assert_allclose(value, start[name] - 0.1 * gradient[name], rtol=1e-5, atol=1e-7)


def test_asking_for_gradients_does_not_change_what_is_trained() -> None:
    plain, watched = _model(dropout=0.5), _model(dropout=0.5)
    _task().train(plain, _data(), _round())
    problem = _task().problem(watched, _data(), _round())
    problem.gradient(estimator="full")

    def look(step: Step) -> None:
        problem.next_gradient()

    problem.run(gradient=look)
    assert _bits(watched) == _bits(plain)


def test_the_gradient_norm_is_a_metric_that_changes_nothing_and_costs_a_pass() -> None:
    plain, watched = _model(dropout=0.5), _model(dropout=0.5)
    _task().train(plain, _data(), _round())
    task = _task(metrics=("gradient_norm",))
    gradient = task.problem(_model(dropout=0.5), _data(), _round()).gradient(estimator="full")[0]
    problem = task.problem(watched, _data(), _round())
    assert problem.run().metrics["gradient_norm"] == pytest.approx(math.sqrt(gradient.squared_norm()))
    assert _bits(watched) == _bits(plain)
    assert problem.oracle_calls == 3 * EXAMPLES


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fisher_is_the_mean_of_squared_gradients_of_single_examples(batch_norm: bool) -> None:
    model, data = _model(batch_norm=batch_norm), _data()
    fisher = _task().problem(model, data, _round()).fisher()
    model.eval()
    expected = {name: np.zeros(tensor.shape) for name, tensor in model.named_parameters()}
    for place in range(EXAMPLES):
        model.zero_grad()
        samples = torch.as_tensor(data.train[0][place : place + 1])
        target = torch.as_tensor(data.train[1][place : place + 1]).long()
        torch.nn.functional.cross_entropy(model(samples), target).backward()
        for name, tensor in model.named_parameters():
            expected[name] += tensor.grad.numpy().astype(float) ** 2 / EXAMPLES
    for name, value in expected.items():
        np.testing.assert_allclose(fisher[name], value, rtol=1e-4, atol=1e-9)


class _Branching(torch.nn.Module):
    """Looks at its data as no vectorised pass can."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.inner(samples) if float(samples.sum()) > 0 else self.inner(2 * samples)


def test_fisher_of_a_model_that_cannot_be_vectorised_is_computed_example_by_example() -> None:
    torch.manual_seed(0)
    model, data = _Branching(), _data()
    fisher = _task().problem(model, data, _round()).fisher()
    squares = torch.zeros(2)
    for place in range(EXAMPLES):
        target = torch.as_tensor(data.train[1][place : place + 1]).long()
        loss = torch.nn.functional.cross_entropy(model(torch.as_tensor(data.train[0][place : place + 1])), target)
        squares += torch.autograd.grad(loss, model.inner.bias)[0].square() / EXAMPLES
    np.testing.assert_allclose(fisher["inner.bias"], squares.numpy(), rtol=1e-5)


def test_only_what_is_named_moves() -> None:
    model = _model()
    problem = _task().problem(model, _data(), _round())
    before = problem.trained.copy()
    problem.run(only=lambda name: name.startswith("3."))
    moved = {name for name, value in problem.trained.items() if not np.array_equal(value, before[name])}
    assert moved == {"3.weight", "3.bias"}
    assert all(tensor.requires_grad for tensor in model.parameters())


def test_a_run_stops_after_the_pass_that_was_enough() -> None:
    seen = []

    def stop(mean) -> bool:
        seen.append(mean.squared_norm())
        return len(seen) == 2

    assert _task().problem(_model(), _data(), _round()).run(epochs=9, stop=stop).passes == 2
    assert all(value > 0 for value in seen)


def test_a_run_by_time_ends_at_its_cap_or_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    timed = _round(epochs=None, seconds=5.0)
    assert _task().problem(_model(), _data(), timed).run().steps == 5
    capped = _round(epochs=None, steps=2, seconds=1000.0)
    assert _task().problem(_model(), _data(), capped).run().steps == 2


def test_equal_purposes_draw_equal_batches() -> None:
    problem = _task().problem(_model(), _data(), _round())
    start, ends = problem.parameters.copy(), []
    for purpose in ("one", "one", "two"):
        problem.parameters.assign(start)
        problem.run(purpose=purpose)
        ends.append(problem.parameters.copy())
    assert (ends[0] - ends[1]).squared_norm() == 0
    assert (ends[0] - ends[2]).squared_norm() > 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_named_optimizer_moves_the_model(name: str) -> None:
    model = _model()
    before = _bits(model)
    problem = _task(optimizer=name).problem(model, _data(), _round(learning_rate=0.01))
    assert problem.optimizer.name == name
    problem.run(steps=3)
    assert _bits(model) != before


def test_a_method_may_choose_the_optimizer() -> None:
    problem = _task(optimizer="adam").problem(_model(), _data(), _round(estimator="full"))
    start, gradient = problem.parameters.copy(), problem.gradient(estimator="full")[0]
    problem.run(optimizer=OptimizerChoice(name="sgd"), steps=1, learning_rate=0.5)
    for name, value in problem.parameters.items():
        np.testing.assert_allclose(value, start[name] - 0.5 * gradient[name], rtol=1e-5, atol=1e-7)
    with pytest.raises(PlanError, match="there is no optimizer 'newton'"):
        problem.run(optimizer=OptimizerChoice(name="newton"))


def test_batch_norm_tensors_are_named() -> None:
    problem = _task().problem(_model(batch_norm=True), _data(), _round())
    assert problem.batch_norm == {
        f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_parameters_are_the_federated_ones_in_the_order_given() -> None:
    model = _model()
    problem = _task().problem(model, _data(), _round(federated=("3.weight", "0.bias")))
    assert list(problem.parameters) == ["3.weight", "0.bias"]
    problem.parameters["0.bias"][...] = 7
    assert model[0].bias.tolist() == [7.0] * 4
    assert list(problem.trained) == ["0.bias", "0.weight", "3.bias", "3.weight"]


def test_a_visit_to_a_device_gives_the_same_bits_with_and_without_corrections() -> None:
    # "cpu:0" is not spelt "cpu", so the model is moved there and back, as it is for an accelerator.
    plain, visited, corrected = (_model(batch_norm=True) for _ in range(3))
    _task().train(plain, _data(), _round())
    _task(device="cpu:0").train(visited, _data(), _round())
    problem = _task(device="cpu:0").problem(corrected, _data(), _round())
    seen = []

    def look(step: Step) -> None:
        seen.append(problem.next_gradient()[0])
        step.gradients *= 1.0

    problem.run(gradient=look)
    assert _bits(visited)["0.weight"] == _bits(plain)["0.weight"] == _bits(corrected)["0.weight"]
    assert len(seen) == 6
    assert problem.evaluate() == _task().evaluate(plain, _data())
