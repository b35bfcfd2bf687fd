"""Per-FedAvg: a model that is good after one gradient step of each site."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.personal import as_personal, put_back
from federation.errors import PlanError

if TYPE_CHECKING:
    from federation.algorithms.client import ClientRound, LocalProblem, Step
    from federation.algorithms.vector import Vector
    from federation.plan import ExperimentSpec


class PerFedAvg(Algorithm):
    r"""Federated MAML: minimises the mean of f_i(w − a∇f_i(w)).

    Fallah, Mokhtari, Ozdaglar: "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
    Meta-Learning Approach", NeurIPS 2020, arXiv:2002.07948, algorithm 1 and section 5.

    $$\nabla \bigl[f_i(w - a\nabla f_i(w))\bigr] = (I - a\nabla^2 f_i(w))\,\nabla f_i(\tilde w), \qquad
    \tilde w = w - a\nabla f_i(w)$$

    First-order drops the Hessian. Hessian-free replaces it by a difference of gradients along v = ∇f_i(w̃):
    ∇²f_i(w) v ≈ (∇f_i(w + δv) − ∇f_i(w − δv))/(2δ). Each gradient at w̃ comes from a batch of its own, the two of the
    difference from one further batch. Evaluations also report the model after one step of size `a` on the site's whole
    data (``personal_*``).

    Example:
        ``Plan(algorithm="per_fedavg", options={"a": 0.01, "variant": "hessian_free"}, local_steps=10)``

    Attributes:
        a: step size of the personal step.
        variant: ``first_order`` or ``hessian_free``, which costs two more gradients a step.
        delta: δ of the difference.
    """

    name: ClassVar[str] = "per_fedavg"
    title: ClassVar[str] = "Per-FedAvg"
    source: ClassVar[str] = "arXiv:2002.07948, algorithm 1"
    personal: ClassVar[bool] = True

    a: float = Field(default=0.01, gt=0)
    variant: Literal["first_order", "hessian_free"] = "first_order"
    delta: float = Field(default=1e-3, gt=0)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse differences of gradients in half precision, which are rounding.

        Raises:
            PlanError: the variant is hessian_free, and a parameter is float16 or bfloat16.
        """
        half = next((row.name for row in spec.schema_.parameters if row.dtype.widened is not row.dtype), None)
        if self.variant == "hessian_free" and half is not None:
            raise PlanError(
                f"algorithm 'per_fedavg' hessian_free takes differences of gradients, which are rounding where "
                f"parameters are of half precision, as {half!r} is: use first_order, or widen them"
            )

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self)


class _Client(ClientHalf):
    def __init__(self, method: PerFedAvg) -> None:
        self._method = method

    def local_gradient(self, round: ClientRound, step: Step) -> None:
        """Step along (I − a∇²f(w)) ∇f(w − a∇f(w)), or along its last factor alone."""
        method, problem = self._method, round.problem
        w = step.parameters.copy()
        problem.parameters.assign(w - method.a * step.gradients)
        gradient, _ = problem.next_gradient()
        if method.variant == "hessian_free":
            gradient -= method.a * self._hessian_times(problem, w, gradient, f"hessian/{step.k}")
        problem.parameters.assign(w)
        step.gradients.assign(gradient)

    def _hessian_times(self, problem: LocalProblem, w: Vector, v: Vector, purpose: str) -> Vector:
        """Return ∇²f(w) v from two gradients on one batch: on two, their noise over 2δ would drown it."""
        delta = self._method.delta
        problem.parameters.assign(w + delta * v)
        ahead, _ = problem.gradient(estimator="minibatch", purpose=purpose)
        problem.parameters.assign(w - delta * v)
        behind, _ = problem.gradient(estimator="minibatch", purpose=purpose)
        return (ahead - behind) / (2 * delta)

    def evaluate(self, round: ClientRound) -> dict[str, float]:
        problem = round.problem
        initial = problem.evaluate()
        with put_back(problem):
            gradient, _ = problem.gradient(estimator="full")
            problem.parameters.assign(problem.parameters - self._method.a * gradient)
            return initial | as_personal(problem.evaluate())
