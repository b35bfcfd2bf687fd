"""FedProx: local training on a leash."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.algorithms.client import ClientRound, Step
    from federation.algorithms.vector import Vector
    from federation.plan import ExperimentSpec


class FedProx(Algorithm):
    r"""A proximal term keeps each local model near the global one; sites may stop when they have done enough.

    Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: "Federated Optimization in Heterogeneous Networks", MLSys 2020,
    arXiv:1812.06127, algorithm 2 and definition 2. Each site minimises

    $$h_i(w) = F_i(w) + \frac{\mu}{2} \lVert w - x \rVert^2$$

    With `gamma` it stops after the first pass for which $\lVert\nabla h_i(w)\rVert \le \gamma\lVert\nabla
    F_i(x)\rVert$ (γ-inexact solution; ∇h_i is the mean over the pass), and after ``local_epochs`` at the latest. With
    μ = 0 and γ off it is FedAvg, to the bit.

    Example:
        ``Plan(algorithm="fedprox", options={"mu": 0.01}, local_epochs=5)``

    Attributes:
        mu: μ ≥ 0, strength of the proximal term; the paper tries 0.001 to 1.
        gamma: γ in (0, 1): smaller means more local work. None: every site does all of it.
    """

    name: ClassVar[str] = "fedprox"
    title: ClassVar[str] = "FedProx"
    source: ClassVar[str] = "arXiv:1812.06127, algorithm 2"

    mu: float = Field(default=0.01, ge=0)
    gamma: float | None = Field(default=None, gt=0, lt=1)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse γ without a number of whole passes: it looks at their gradients, and may never be met.

        Raises:
            PlanError: the plan counts local steps or seconds.
        """
        if self.gamma is not None and spec.plan.epochs is None:
            given = "local_steps" if spec.plan.local_steps is not None else "local_seconds"
            raise PlanError(
                f"option gamma of 'fedprox' stops after whole passes, local_epochs at the latest: give local_epochs, "
                f"not {given}"
            )

    def client(self) -> ClientHalf:
        """Return the client half: FedAvg's if there is neither μ nor γ."""
        return _Client(self.mu, self.gamma) if self.mu or self.gamma is not None else ClientHalf()


class _Client(ClientHalf):
    def __init__(self, mu: float, gamma: float | None) -> None:
        self._mu = mu
        self._gamma = gamma

    def work(self, round: ClientRound) -> None:
        x, mu = round.start, self._mu

        def local_gradient(step: Step) -> None:
            step.gradients += mu * (step.parameters - x)

        round.problem.run(gradient=local_gradient if mu else None, stop=self._stop(round))
        round.send_change()

    def _stop(self, round: ClientRound) -> Callable[[Vector], bool] | None:
        if self._gamma is None:
            return None
        gradient, _ = round.problem.gradient(estimator="full")
        enough = self._gamma * math.sqrt(gradient.squared_norm())

        def is_solved(mean: Vector) -> bool:
            return math.sqrt(mean.squared_norm()) <= enough

        return is_solved
