"""Ditto: one model for all and one for each, tied to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.personal import as_personal, put_back

if TYPE_CHECKING:
    from federation.algorithms.client import ClientRound, Run, Step


class Ditto(Algorithm):
    r"""FedAvg, and beside it at each site a personal model that is held near the global one.

    Li, Hu, Beirami, Smith: "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
    arXiv:2012.04221, algorithm 1.

    $$v_i \approx \arg\min_v F_i(v) + \frac{\lambda}{2} \lVert v - x \rVert^2$$

    The global model is FedAvg's to the bit. The personal one trains as long as the plan says, from where it was, after
    the global run; it never leaves the site, a late joiner's starts at the global model, and it is evaluated as
    ``personal_*``.

    Example:
        ``Plan(algorithm="ditto", options={"strength": 0.1}, local_epochs=2)``

    Attributes:
        strength: λ ≥ 0: 0 trains alone, large values follow the global model.
    """

    name: ClassVar[str] = "ditto"
    title: ClassVar[str] = "Ditto"
    source: ClassVar[str] = "arXiv:2012.04221, algorithm 1"
    site_state: ClassVar[tuple[str, ...]] = ("personal",)
    personal: ClassVar[bool] = True

    strength: float = Field(default=0.1, ge=0)

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self.strength)


class _Client(ClientHalf):
    def __init__(self, strength: float) -> None:
        self._strength = strength

    def local_state(self, round: ClientRound, run: Run) -> None:
        """Train v on ∇F_i(v) + λ(v − x), from where it was left."""
        problem, x, strength = round.problem, round.start, self._strength

        def local_gradient(step: Step) -> None:
            step.gradients += strength * (step.parameters - x)

        with put_back(problem):
            if "personal" in round.state:
                problem.trained.assign(round.state["personal"])
            else:
                problem.parameters.assign(x)
            problem.run(gradient=local_gradient, purpose="personal")
            round.state["personal"] = problem.trained.copy()

    def evaluate(self, round: ClientRound) -> dict[str, float]:
        metrics = round.problem.evaluate()
        with put_back(round.problem):
            if "personal" in round.state:
                round.problem.trained.assign(round.state["personal"])
            return metrics | as_personal(round.problem.evaluate())
