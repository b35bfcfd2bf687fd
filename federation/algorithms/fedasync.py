"""FedAsync: every model is taken in when it arrives, the older the less."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf, ServerRound, uniform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound, Step


class FedAsync(Algorithm):
    r"""No rounds: the server mixes in each site's model as soon as it comes, and sends that site the new one.

    Xie, Koyejo, Gupta: "Asynchronous Federated Optimization", arXiv:1903.03934, algorithm 1 and section 5.2.

    $$x \leftarrow (1 - \alpha_t) x + \alpha_t w, \qquad w = x_\tau + \Delta, \qquad \alpha_t = \alpha\, s(t - \tau)$$

    s is 1 (constant), (t−τ+1)^{−a} (polynomial), or 1 up to t−τ = b and 1/(a(t−τ−b)+1) beyond (hinge). w is the whole
    local model, so the server keeps each version x_τ that a site still trains from. A late joiner needs nothing. η_g
    multiplies α_t.

    Example:
        ``Plan(algorithm="fedasync", options={"alpha": 0.6, "strategy": "polynomial"})``

    Attributes:
        alpha: α in (0, 1].
        strategy: how a model's weight falls with its age.
        a: of the strategy; None: 0.5 for polynomial, 10 for hinge.
        b: age up to which hinge makes no difference.
        rho: ρ ≥ 0 of the local term (ρ/2)‖w − x_τ‖²; 0 leaves local training as it is.
        max_staleness: steps of the server after which a model is too old to be taken. None: it never is.
    """

    name: ClassVar[str] = "fedasync"
    title: ClassVar[str] = "FedAsync"
    source: ClassVar[str] = "arXiv:1903.03934, algorithm 1"
    needs_base: ClassVar[bool] = True
    only_mean: ClassVar[bool] = True
    mode: ClassVar[Literal["rounds", "buffer"]] = "buffer"

    alpha: float = Field(default=0.6, gt=0, le=1)
    strategy: Literal["constant", "polynomial", "hinge"] = "polynomial"
    a: float | None = Field(default=None, gt=0)
    b: float = Field(default=4, ge=0)
    rho: float = Field(default=0.0, ge=0)
    max_staleness: int | None = Field(default=None, ge=0)

    @property
    def needs_problem(self) -> bool:
        """Only for the local term."""
        return self.rho > 0

    def share(self, staleness: int) -> float:
        """Return α_t of a model that is `staleness` versions old."""
        if self.strategy == "polynomial":
            return float(self.alpha * (staleness + 1) ** -(0.5 if self.a is None else self.a))
        if self.strategy == "hinge" and staleness > self.b:
            return self.alpha / ((10.0 if self.a is None else self.a) * (staleness - self.b) + 1)
        return self.alpha

    def stalest(self) -> int | None:
        """Return the most steps an update may be old."""
        return self.max_staleness

    def client(self) -> ClientHalf:
        """Return the client half: FedAvg's without ρ."""
        return _Client(self.rho) if self.rho else ClientHalf()

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server(self)


class _Client(ClientHalf):
    def __init__(self, rho: float) -> None:
        self._rho = rho

    def local_gradient(self, round: ClientRound, step: Step) -> None:
        step.gradients += self._rho * (step.parameters - round.start)


class _Server(ServerHalf):
    def __init__(self, method: FedAsync) -> None:
        self._method = method

    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return uniform(round, "delta")

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        (site,) = round.sites
        # The mean of one is (x_τ − x) + Δ = w − x: payloads were rebased before the rule.
        return {"eta": round.learning_rate * self._method.share(site.staleness)}
