"""FedSGD: one step on the whole federation's gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf, ServerRound, examples

if TYPE_CHECKING:
    from federation.algorithms.client import ClientRound


class FedSgd(Algorithm):
    r"""Every site sends one gradient over all its data: gradient descent on the whole federation, data apart.

    McMahan et al.: "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    arXiv:1602.05629, section 2, the baseline of FedAvg.

    $$x^{t+1} = x^t - \eta_g \eta_l \sum_{i \in S} \frac{n_i}{n} \nabla F_i(x^t)$$

    The plan's amount of local work, its optimizer and its weighting are not used: η_l is ``plan.learning_rate``.

    Example:
        ``Plan(algorithm="fedsgd", learning_rate=0.1, rounds=200)``
    """

    name: ClassVar[str] = "fedsgd"
    title: ClassVar[str] = "FedSGD"
    source: ClassVar[str] = "arXiv:1602.05629, section 2"

    @property
    def has_own_optimizer(self) -> bool:
        """True: a site takes no step."""
        return True

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client()

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server()


class _Client(ClientHalf):
    def work(self, round: ClientRound) -> None:
        gradient, _ = round.problem.gradient(estimator="full")
        round.send("delta", -round.learning_rate * gradient)


class _Server(ServerHalf):
    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return examples(round, "delta")
