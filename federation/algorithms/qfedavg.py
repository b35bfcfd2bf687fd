"""q-FedAvg: sites that are worse off count more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf, ServerRound
from federation.errors import PlanError
from federation.rounds.schedules import local_rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from federation.algorithms.client import ClientRound
    from federation.plan import ExperimentSpec

_LEAST_LOSS = 1e-10
"""F_k must be above 0 to be raised to q − 1."""


class QFedAvg(Algorithm):
    r"""Minimises Σ F_k^{q+1}: the larger q, the more even the losses of the sites.

    Li, Sanjabi, Beirami, Smith: "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv:1905.10497,
    algorithm 2.

    $$\Delta w_k = L(x - \bar w_k), \quad \Delta_k = F_k^q \Delta w_k, \quad
    h_k = q F_k^{q-1} \lVert \Delta w_k \rVert^2 + L F_k^q, \quad x \leftarrow x - \frac{\sum_S \Delta_k}{\sum_S h_k}$$

    F_k is the site's loss at the x it received, before it trains (at least 1e-10); L = 1/η_l. With q = 0 it is FedAvg
    with equal weights. Sites tell the server one number about themselves, their loss.

    Example:
        ``Plan(algorithm="qfedavg", options={"q": 1.0}, local_epochs=1)``

    Attributes:
        q: q ≥ 0, how much fairness counts.
    """

    name: ClassVar[str] = "qfedavg"
    title: ClassVar[str] = "q-FedAvg"
    source: ClassVar[str] = "arXiv:1905.10497, algorithm 2"
    scalars: ClassVar[tuple[str, ...]] = ("loss",)
    needs_norms: ClassVar[bool] = True
    only_mean: ClassVar[bool] = True
    sets_server_step: ClassVar[bool] = True

    q: float = Field(default=1.0, ge=0)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse a cap on weights by examples: here weights are losses.

        Raises:
            PlanError: `max_share` would bind nothing.
        """
        if spec.plan.max_share is not None:
            raise PlanError(
                "algorithm 'qfedavg' weighs sites by their loss, which max_share does not bound: leave max_share out, "
                "or use fedavg"
            )

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client()

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server(self.q)


class _Client(ClientHalf):
    def work(self, round: ClientRound) -> None:
        round.send_scalar("loss", max(round.problem.loss(), _LEAST_LOSS))
        round.problem.run()
        round.send_change()


class _Server(ServerHalf):
    def __init__(self, q: float) -> None:
        self._q = q

    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        # (F_k / max F)^q: the rule divides by the sum, and no loss a site may claim overflows.
        losses = [_loss(site.scalars) for site in round.sites]
        return {"delta": [(loss / max(losses)) ** self._q for loss in losses]}

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        """Return η = Σ F_k^q / (Σ h_k / L), by which the mean of the changes is the step ΣΔ_k/Σh_k."""
        eta_l = local_rate(round.plan, round.number)
        powers = self.weights(round)["delta"]
        # h_k / L = q F^{q−1} L‖x − w̄_k‖² + F^q; with 1/L, since a schedule may end at η_l = 0.
        h = _sum(
            _curvature(self._q * power / _loss(site.scalars), site.norm * site.norm, eta_l) + power
            for site, power in zip(round.sites, powers, strict=True)
        )
        # −ΣΔ_k = L Σ F_k^q (w̄_k − x), and the rule's mean is that sum over ΣF_k^q.
        return {"eta": math.fsum(powers) / h}


def _curvature(factor: float, squared: float, eta_l: float) -> float:
    """Return q F^{q−1} L‖x − w̄_k‖²: without bound where a site moves at η_l = 0, by what feedback or a lie holds."""
    if not factor or not squared:
        return 0.0
    return factor * squared / eta_l if eta_l else math.inf


def _sum(terms: Iterable[float]) -> float:
    """Return Σ, or infinity where it is beyond float64: the step is then 0."""
    try:
        return math.fsum(terms)
    except OverflowError:
        return math.inf


def _loss(scalars: Mapping[str, float]) -> float:
    return max(scalars["loss"], _LEAST_LOSS)
