"""Site momentum: what a site sends is the average of what it has learnt, so that lies cannot hide in the noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf

if TYPE_CHECKING:
    from federation.algorithms.client import ClientRound


class SiteMomentum(Algorithm):
    r"""Each site sends the running average of its changes: honest ones draw together, and a robust rule can tell.

    Karimireddy, He, Jaggi: "Learning from History for Byzantine Robust Optimization", ICML 2021, arXiv:2012.10333,
    algorithm 2, with the change $\Delta_i$ of a local run for the gradient, and $\beta = 0$ in a site's first round.

    $$m_i \leftarrow (1 - \beta) \Delta_i + \beta m_i, \qquad x \leftarrow x + \eta_g R(m_1, \dots, m_n)$$

    A robust rule R looks at one round. Where honest updates differ by chance, an attack that keeps within their spread
    passes it every time and adds up over rounds; averaging shrinks the chance and leaves the attack. The server is
    slower to turn: about $1/(1 - \beta)$ rounds. With β = 0 it is FedAvg.

    Example:
        ``Plan(algorithm="site_momentum", options={"beta": 0.9})``

    Attributes:
        beta: β from 0 to below 1; the paper uses 0.9.
    """

    name: ClassVar[str] = "site_momentum"
    title: ClassVar[str] = "Site momentum"
    source: ClassVar[str] = "arXiv:2012.10333, algorithm 2"
    site_state: ClassVar[tuple[str, ...]] = ("momentum",)
    has_momentum: ClassVar[bool] = True

    beta: float = Field(default=0.9, ge=0, lt=1)

    def client(self) -> ClientHalf:
        """Return the client half: FedAvg's if there is no β."""
        return _Client(self.beta) if self.beta else ClientHalf()


class _Client(ClientHalf):
    def __init__(self, beta: float) -> None:
        self._beta = beta

    def work(self, round: ClientRound) -> None:
        round.problem.run()
        change = round.problem.parameters - round.start
        before = round.state.get("momentum")
        momentum = change if before is None else (1 - self._beta) * change + self._beta * before
        round.state["momentum"] = momentum
        round.send("delta", momentum)
