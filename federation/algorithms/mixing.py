"""Personalisation by mixing: each site goes on from a mixture of its own model and the federation's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.personal import as_personal, put_back

if TYPE_CHECKING:
    from federation.algorithms.client import ClientRound
    from federation.algorithms.vector import Vector


class Mixing(Algorithm):
    r"""Local training starts at a weighted average of the site's previous model and the global one.

    Interpolation as in Mansour, Mohri, Ro, Suresh: "Three Approaches for Personalization with Applications to
    Federated Learning", arXiv:2002.10619, section 5, with a fixed weight.

    $$w_i \leftarrow \beta v_i + (1 - \beta) x, \qquad v_i \leftarrow \text{SGD}(w_i; F_i), \qquad
    x \leftarrow x + \eta_g \frac{\sum_S p_i (v_i - x)}{\sum_S p_i}$$

    v_i stays at the site; a late joiner's is x. Evaluations also report the mixture (``personal_*``). β = 0 is FedAvg.

    Example:
        ``Plan(algorithm="mixing", options={"beta": 0.5}, local_epochs=1)``

    Attributes:
        beta: β in [0, 1): how much of its own model a site keeps.
    """

    name: ClassVar[str] = "mixing"
    title: ClassVar[str] = "Personalisation by mixing"
    source: ClassVar[str] = "arXiv:2002.10619, section 5"
    site_state: ClassVar[tuple[str, ...]] = ("personal",)
    personal: ClassVar[bool] = True

    beta: float = Field(default=0.5, ge=0, lt=1)

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self.beta)


class _Client(ClientHalf):
    def __init__(self, beta: float) -> None:
        self._beta = beta

    def work(self, round: ClientRound) -> None:
        problem = round.problem
        problem.parameters.assign(self._mixture(round))
        problem.run()
        round.state["personal"] = problem.parameters.copy()
        round.send_change()

    def evaluate(self, round: ClientRound) -> dict[str, float]:
        metrics = round.problem.evaluate()
        with put_back(round.problem):
            round.problem.parameters.assign(self._mixture(round))
            return metrics | as_personal(round.problem.evaluate())

    def _mixture(self, round: ClientRound) -> Vector:
        """Return βv + (1 − β)x, as x + β(v − x): with β = 0, or v = x, exactly x."""
        v = round.state.get("personal")
        return round.start if v is None else round.start + self._beta * (v - round.start)
