"""FedNova: unequal local work must not pull the model towards those who work most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf, OptimizerChoice
from federation.algorithms.server import ServerHalf, ServerRound, by_plan
from federation.errors import PlanError
from federation.rounds.schedules import local_rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound, Step
    from federation.plan import ExperimentSpec


class FedNova(Algorithm):
    r"""Each change is divided by the local work behind it, and the mean is multiplied by the average work.

    Wang, Liu, Liang, Joshi, Poor: "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization", NeurIPS 2020, arXiv:2007.07481, equations 6 to 9.

    $$x \leftarrow x + \eta_g \tau_{\text{eff}} \sum_S p_i \frac{\Delta_i}{\lVert a_i\rVert_1}, \qquad
    \tau_{\text{eff}} = \sum_S p_i \lVert a_i\rVert_1, \qquad \sum_S p_i = 1$$

    ‖a_i‖₁ weighs the local gradients in Δ_i: τ_i for plain SGD, (τ − ρ(1 − ρ^τ)/(1 − ρ))/(1 − ρ) with momentum ρ that
    starts anew each round, (1 − (1 − ημ)^τ)/(ημ) with a proximal term. Where all sites do equal work it is FedAvg.

    Example:
        ``Plan(algorithm="fednova", local_epochs=2)`` where sites hold unequal amounts of data

    Attributes:
        momentum: ρ in [0, 1): sites train with SGD of this momentum; 0: with the task's own SGD,
            which must have none. Other optimizers are refused.
        mu: μ ≥ 0 of a proximal term as in FedProx; not together with momentum, for which a_i has no closed form.
    """

    name: ClassVar[str] = "fednova"
    title: ClassVar[str] = "FedNova"
    source: ClassVar[str] = "arXiv:2007.07481, equations 6 to 9"
    only_mean: ClassVar[bool] = True

    momentum: float = Field(default=0.0, ge=0, lt=1)
    mu: float = Field(default=0.0, ge=0)

    @property
    def needs_problem(self) -> bool:
        """Only with momentum or a proximal term: otherwise the steps sites report are enough."""
        return bool(self.momentum or self.mu)

    @property
    def has_own_optimizer(self) -> bool:
        """With momentum: SGD of that, which starts anew each round."""
        return bool(self.momentum)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse momentum with a proximal term, a proximal term that overshoots, and a cap on weights by examples.

        Raises:
            PlanError: the work behind a change could not be told, or `max_share` would bind nothing.
        """
        if spec.plan.max_share is not None:
            raise PlanError(
                "algorithm 'fednova' divides what a site sends by the steps it says it took, which max_share does not "
                "bound: leave max_share out, or use fedavg"
            )
        if self.momentum and self.mu:
            raise PlanError("algorithm 'fednova' takes momentum or mu, not both")
        if self.mu * spec.plan.learning_rate >= 1:
            raise PlanError(
                f"algorithm 'fednova' needs learning_rate · mu below 1, got {self.mu * spec.plan.learning_rate:g}"
            )

    def check_optimizer(self, choice: OptimizerChoice) -> None:
        """Refuse an optimizer whose steps are not those ‖a_i‖₁ counts; weight decay only changes F_i.

        Raises:
            PlanError: it is not SGD, or has a momentum that option ``momentum`` does not know of.
        """
        if self.momentum:
            return  # sites train with SGD of that, whatever the task's
        if choice.name != "sgd":
            raise PlanError(
                f"algorithm 'fednova' divides changes by the work behind them, which is known for SGD; the task uses "
                f"{choice}: use optimizer 'sgd', option momentum (SGD with momentum in the task's place), or fedavg"
            )
        if choice.options.get("momentum"):
            raise PlanError(
                f"algorithm 'fednova' must know of momentum, and the task uses {choice}: set option momentum to "
                f"{choice.options['momentum']} in place of the task's"
            )

    def client(self) -> ClientHalf:
        """Return the client half: FedAvg's without momentum and proximal term."""
        return _Client(self.momentum, self.mu) if self.needs_problem else ClientHalf()

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server(self.momentum, self.mu)


class _Client(ClientHalf):
    def __init__(self, momentum: float, mu: float) -> None:
        self._momentum = momentum
        self._mu = mu

    def local_gradient(self, round: ClientRound, step: Step) -> None:
        if self._mu:
            step.gradients += self._mu * (step.parameters - round.start)

    def client_opt(self, round: ClientRound) -> OptimizerChoice | None:
        return OptimizerChoice(name="sgd", options={"momentum": self._momentum}) if self._momentum else None


class _Server(ServerHalf):
    def __init__(self, momentum: float, mu: float) -> None:
        self._momentum = momentum
        self._mu = mu

    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        p = by_plan(round, "delta")["delta"]
        return {"delta": [p_i / a_i for p_i, a_i in zip(p, self._work(round), strict=True)]}

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        p, a = by_plan(round, "delta")["delta"], self._work(round)
        total = math.fsum(p)
        tau_eff = math.fsum(p_i * a_i for p_i, a_i in zip(p, a, strict=True)) / total
        # The rule divides by the sum of the weights p_i/a_i; here it is multiplied back.
        return {"eta": round.learning_rate * tau_eff * math.fsum(self.weights(round)["delta"]) / total}

    def _work(self, round: ServerRound) -> list[float]:
        """Return ‖a_i‖₁ of each site; a site without a step has Δ = 0, and any divisor does."""
        eta = local_rate(round.plan, round.number)
        return [accumulated(max(site.steps, 1), rho=self._momentum, eta_mu=eta * self._mu) for site in round.sites]


def accumulated(tau: int, *, rho: float, eta_mu: float) -> float:
    """Return ‖a‖₁ of `tau` local steps with momentum `rho` or a proximal term of η·μ = `eta_mu`."""
    if rho:
        return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    if eta_mu:
        return (1 - (1 - eta_mu) ** tau) / eta_mu
    return float(tau)
