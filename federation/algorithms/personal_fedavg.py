"""Personalised FedAvg: find a model from which every site gets far with a little training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.fedopt import AdamServer
from federation.algorithms.personal import as_personal, put_back
from federation.algorithms.server import ServerHalf, ServerRound, ServerTile, advance
from federation.rounds.schedules import factor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound


class PersonalFedAvg(Algorithm):
    r"""Three stages: FedAvg with momentum, fine-tuning by Reptile with Adam at the server, then personal training.

    Jiang, Konečný, Rush, Kannan: "Improving Federated Learning Personalization via Model Agnostic Meta Learning",
    arXiv:1909.12488, section 3 and algorithm 2.

    $$t \le T_1:\; v \leftarrow \beta v + \Delta,\; x \leftarrow x + \eta_g v; \qquad
    t > T_1:\; x \leftarrow x + \eta_r \operatorname{Adam}(\Delta^{(K)})$$

    Δ is FedAvg's mean change after the plan's (large) local work; Δ^{(K)} that after K local steps, Reptile's
    direction. Adam is FedAdam's, without bias correction. Each evaluation reports the model received (initial) and the
    same model after the site trained it for `personal_epochs` with its own optimizer (``personal_*``); that copy is
    thrown away.

    Example:
        ``Plan(algorithm="personal_fedavg", options={"stage_rounds": 200}, rounds=300, local_epochs=10)``

    Attributes:
        stage_rounds: T₁, rounds of the first stage.
        reptile_k: K, local steps a round in the second.
        beta: server momentum of the first stage.
        reptile_rate: η_r, server step size of the second stage, in the place of ``plan.server_learning_rate``; the
            plan's ``server_schedule`` multiplies either.
        personal_epochs: passes over the local data before a personal evaluation.
    """

    name: ClassVar[str] = "personal_fedavg"
    title: ClassVar[str] = "Personalised FedAvg"
    source: ClassVar[str] = "arXiv:1909.12488, algorithm 2"
    slots: ClassVar[tuple[str, ...]] = ("momentum", "variance")
    has_momentum: ClassVar[bool] = True
    personal: ClassVar[bool] = True

    stage_rounds: int = Field(default=50, ge=0)
    reptile_k: int = Field(default=10, ge=1)
    beta: float = Field(default=0.9, ge=0, lt=1)
    reptile_rate: float = Field(default=1e-3, gt=0)
    personal_epochs: int = Field(default=1, ge=1)

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server(self)


class _Client(ClientHalf):
    def __init__(self, method: PersonalFedAvg) -> None:
        self._method = method

    def work(self, round: ClientRound) -> None:
        if round.number <= self._method.stage_rounds:
            round.problem.run()
        else:
            round.problem.run(steps=self._method.reptile_k)
        round.send_change()

    def evaluate(self, round: ClientRound) -> dict[str, float]:
        initial = round.problem.evaluate()
        with put_back(round.problem):
            round.problem.run(epochs=self._method.personal_epochs, purpose="personal")
            return initial | as_personal(round.problem.evaluate())


class _Server(ServerHalf):
    def __init__(self, method: PersonalFedAvg) -> None:
        self._method = method
        self._adam = AdamServer(beta1=0.9, beta2=0.99, tau=1e-3)

    def initial(self, slot: str) -> float:
        return self._adam.initial(slot)

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        stage = self._method.stage_rounds
        if round.number <= stage:
            return {"eta": round.learning_rate, "beta": self._method.beta}
        # Adam's m starts at 0; what the slot holds then is momentum of the first stage.
        eta_r = self._method.reptile_rate * factor(round.plan.server_schedule, round.number, round.plan.rounds)
        return {"eta": eta_r, "kept": 0.0 if round.number == stage + 1 else 1.0}

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        """Momentum in the first stage, Adam in the second."""
        v = tile.state["momentum"]
        if "beta" in scalars:
            v *= scalars["beta"]
            v += tile.mean["delta"]
            advance(tile.x, scalars["eta"], v)
        else:
            v *= scalars["kept"]
            self._adam.step(tile, scalars)
