"""A site's training problem, as the task gives it: `make_problem`.

A task with a method ``problem(model, data, round)`` gives its own (`federation.training.torch_problem`,
`federation.training.array_problem`). Any other task can only be told to train; that is enough for methods that leave
the site's work as it is: those of the server half, and compression of the change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from federation.algorithms.client import LocalProblem, OptimizerChoice, Run
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.algorithms.client import Step
    from federation.algorithms.vector import Vector
    from federation.data.local import LocalData
    from federation.training.context import RoundContext


class SiteProblem(LocalProblem, Protocol):
    """What ``task.problem(model, data, round)`` returns: a problem that counts what is done with it.

    Attributes:
        metrics: training metrics of the latest run; of the latest gradient where there was no run.
        steps: optimizer steps of all runs.
        oracle_calls: gradients of single examples computed, in runs and besides.
    """

    metrics: Mapping[str, float]
    steps: int
    oracle_calls: int


def make_problem(task: Any, model: Any, data: LocalData, context: RoundContext, start: Vector) -> SiteProblem:
    """Return the problem of a round, at the model as it was loaded.

    Args:
        task: of the experiment.
        model: live, loaded.
        data: the site's.
        context: the round.
        start: the federated trained tensors as loaded; names and order of the problem's parameters.
    """
    if callable(getattr(task, "problem", None)):
        problem: SiteProblem = task.problem(model, data, context)
        return problem
    return TaskProblem(task, model, data, context, start)


class TaskProblem:
    """A task without ``problem()``: it trains and evaluates, and answers nothing else.

    Args:
        task: as `make_problem`.
        model: live.
        data: the site's.
        context: the round.
        start: names and order of the parameters.
    """

    def __init__(self, task: Any, model: Any, data: LocalData, context: RoundContext, start: Vector) -> None:
        self._task = task
        self._model = model
        self._data = data
        self._context = context
        self._names = tuple(start)
        self.metrics: Mapping[str, float] = {}
        self.steps = 0
        self.oracle_calls = 0

    @property
    def parameters(self) -> Vector:
        """The federated and trained tensors, live."""
        from federation.algorithms.vector import Vector
        from federation.training.models import adapt

        arrays = adapt(self._model).arrays()
        return Vector({name: arrays[name] for name in self._names})

    @property
    def trained(self) -> Vector:
        """Not known of such a task: raises PlanError."""
        raise self._refusal("looks at its trained tensors")

    @property
    def batch_norm(self) -> frozenset[str]:
        """Not known of such a task: raises PlanError."""
        raise self._refusal("asks for its batch-norm tensors")

    @property
    def optimizer(self) -> OptimizerChoice:
        """Not known of such a task: raises PlanError."""
        raise self._refusal("asks for its optimizer")

    def run(
        self,
        *,
        gradient: Callable[[Step], None] | None = None,
        only: Callable[[str], bool] | None = None,
        optimizer: OptimizerChoice | None = None,
        learning_rate: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        stop: Callable[[Vector], bool] | None = None,
        purpose: str = "shuffle",
    ) -> Run:
        """Have the task train as the plan says.

        Raises:
            PlanError: anything else was asked for.
        """
        if gradient is not None or stop is not None:
            raise self._refusal("corrects or watches its gradients")
        if any(each is not None for each in (only, optimizer, learning_rate, epochs, steps)) or purpose != "shuffle":
            raise self._refusal("chooses what a run does")
        steps_before, drawn_before = self._data.batches_drawn, self._data.examples_drawn
        self.metrics = self._task.train(self._model, self._data, self._context)
        taken = self._data.batches_drawn - steps_before
        drawn = self._data.examples_drawn - drawn_before or self._data.train_examples
        self.steps += taken
        self.oracle_calls += drawn
        return Run(
            steps=taken,
            learning_rate_sum=taken * self._context.learning_rate,
            passes=drawn // max(self._data.train_examples, 1),
            oracle_calls=drawn,
            metrics=self.metrics,
        )

    def gradient(self, *, estimator: str | None = None, purpose: str = "gradient") -> tuple[Vector, float]:
        """Not known of such a task: raises PlanError."""
        raise self._refusal("needs its gradients")

    def next_gradient(self) -> tuple[Vector, float]:
        """Not known of such a task: raises PlanError."""
        raise self._refusal("needs its gradients")

    def fisher(self) -> Vector:
        """Not known of such a task: raises PlanError."""
        raise self._refusal("needs its gradients")

    def evaluate(self) -> dict[str, float]:
        """Return the task's own metrics on the validation data."""
        return dict(self._task.evaluate(self._model, self._data))

    def loss(self) -> float:
        """Not known of such a task: raises PlanError."""
        raise self._refusal("needs its loss")

    def _refusal(self, why: str) -> PlanError:
        return PlanError(
            f"task {type(self._task).__name__} has no method problem(), and the algorithm {why}: use SupervisedTask or "
            "GradientTask, or write problem()"
        )
