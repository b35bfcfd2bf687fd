from __future__ import annotations

import numpy as np
import pytest

from federation import GradientTask
from federation.algorithms.client import OptimizerChoice
from federation.data import ArrayShard, LocalData
from federation.errors import PlanError
from federation.names import SiteName
from federation.training.context import RoundContext

RNG = np.random.default_rng(2)
SAMPLES, TARGETS = RNG.normal(size=(12, 3)), RNG.normal(size=12)


class LeastSquares(GradientTask):
    def gradient(self, model, samples, targets):
        error = samples @ model["w"] - targets
        return {"loss": float(error @ error) / (2 * len(error))}, {"w": samples.T @ error / len(error)}


def _round(**changes: object) -> RoundContext:
    values: dict[str, object] = {
        "number": 1,
        "site": SiteName("north"),
        "seed": 5,
        "epochs": 1,
        "steps": None,
        "learning_rate": 0.1,
        "threads": 1,
    }
    return RoundContext(**{**values, **changes})  # type: ignore[arg-type]


def _data() -> LocalData:
    return LocalData(ArrayShard(train=(SAMPLES, TARGETS), validation=(SAMPLES[:4], TARGETS[:4])))


def _gradient(w: np.ndarray) -> np.ndarray:
    return SAMPLES.T @ (SAMPLES @ w - TARGETS) / len(TARGETS)


def test_full_steps_are_gradient_descent_in_float64() -> None:
    model = {"w": np.ones(3), "count": np.asarray(0)}
    problem = LeastSquares(evaluation_batch_size=12).problem(model, _data(), _round(estimator="full", epochs=5))
    run = problem.run()
    expected = np.ones(3)
    for _ in range(5):
        expected = expected - 0.1 * _gradient(expected)
    np.testing.assert_allclose(model["w"], expected, rtol=1e-15)
    assert (run.steps, run.passes, run.oracle_calls) == (5, 5, 60)
    assert run.learning_rate_sum == pytest.approx(0.5)


def test_momentum_and_weight_decay_are_those_of_sgd() -> None:
    model = {"w": np.ones(3)}
    task = LeastSquares(momentum=0.9, weight_decay=0.01, evaluation_batch_size=12)
    context = _round(estimator="full", epochs=3)
    task.train(model, _data(), context)
    w, velocity = np.ones(3), np.zeros(3)
    for _ in range(3):
        velocity = 0.9 * velocity + _gradient(w) + 0.01 * w
        w = w - 0.1 * velocity
    np.testing.assert_allclose(model["w"], w, rtol=1e-14)
    np.testing.assert_allclose(context.optimizer_state["w/momentum_buffer"], velocity, rtol=1e-14)


def test_the_gradient_is_that_of_all_examples_whatever_the_batches() -> None:
    for size in (12, 5):
        problem = LeastSquares(evaluation_batch_size=size).problem({"w": np.ones(3)}, _data(), _round())
        gradient, loss = problem.gradient(estimator="full")
        np.testing.assert_allclose(gradient["w"], _gradient(np.ones(3)), rtol=1e-13)
        assert loss == pytest.approx(problem.loss(), rel=1e-13)
    assert problem.oracle_calls == 12


def test_fisher_is_the_mean_square_of_single_gradients() -> None:
    fisher = LeastSquares().problem({"w": np.ones(3)}, _data(), _round()).fisher()
    single = SAMPLES * (SAMPLES @ np.ones(3) - TARGETS)[:, None]
    np.testing.assert_allclose(fisher["w"], (single**2).mean(axis=0), rtol=1e-13)


def test_a_correction_reaches_the_step_and_a_stop_sees_the_mean_of_the_pass() -> None:
    model, seen = {"w": np.ones(3)}, []

    def correct(step) -> None:
        step.gradients *= 0.0
        step.gradients["w"][...] += step.k

    def stop(mean) -> bool:
        seen.append(mean["w"].tolist())
        return True

    LeastSquares(batch_size=4).problem(model, _data(), _round(epochs=4)).run(gradient=correct, stop=stop)
    assert seen == [[1.0, 1.0, 1.0]]
    np.testing.assert_allclose(model["w"], 1 - 0.1 * (0 + 1 + 2))


def test_evaluation_is_on_the_validation_data() -> None:
    error = SAMPLES[:4] @ np.ones(3) - TARGETS[:4]
    assert LeastSquares().evaluate({"w": np.ones(3)}, _data()) == {"loss": pytest.approx(error @ error / 8)}


def test_next_gradient_walks_through_the_data() -> None:
    problem = LeastSquares(batch_size=4).problem({"w": np.ones(3)}, _data(), _round())
    total = sum(problem.next_gradient()[0]["w"] for _ in range(3)) / 3
    np.testing.assert_allclose(total, _gradient(np.ones(3)), rtol=1e-13)


class _Wrong(GradientTask):
    def gradient(self, model, samples, targets):
        return {"loss": 0.0}, {"w": np.zeros(2)}


def test_a_gradient_of_another_shape_is_refused() -> None:
    with pytest.raises(PlanError, match=r"returned shape \[2\] for tensor 'w'; expected a gradient of shape \[3\]"):
        _Wrong().train({"w": np.ones(3)}, _data(), _round())


def test_an_optimizer_that_is_not_sgd_is_refused() -> None:
    problem = LeastSquares().problem({"w": np.ones(3)}, _data(), _round())
    with pytest.raises(PlanError, match="use 'sgd' with momentum and weight_decay"):
        problem.run(optimizer=OptimizerChoice(name="adam"))
