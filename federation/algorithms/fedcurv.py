"""FedCurv: remember what matters to others while training on one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf, ServerRound, ServerTile, by_plan, uniform
from federation.algorithms.vector import Vector
from federation.compression import load_codec
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound, Run, Step
    from federation.plan import ExperimentSpec

_FAITHFUL = ("identity", "float16", "bfloat16")
"""Codecs with an error that is small beside each element, not only beside the largest."""


class FedCurv(Algorithm):
    r"""Each site is held near the others' models, coordinate by coordinate as much as those matter to the others.

    Shoham, Avidor, Keren, Israel, Benditkis, Mor-Yosef, Zeitak: "Overcoming Forgetting in Federated Learning on Non-IID
    Data", arXiv:1910.07796, section 3.

    $$\min_w F_i(w) + \lambda \sum_{j \ne i} (w - w_j)^\top \operatorname{diag}(I_j)(w - w_j), \qquad
    \nabla = \nabla F_i(w) + 2\lambda(w U - V)$$

    with U = Σ_{j≠i} I_j and V = Σ_{j≠i} I_j w_j over the sites of the last round; I_j is the diagonal of the Fisher
    information at w_j, the mean over examples of the squared gradient of each. Sites send I_i and I_i w_i, the server
    returns the sums, and each site takes its own part out if it is in them. A late joiner has none.

    Compression may only be a cast to 16 bits: another codec changes U and V unlike, and where it leaves a coordinate of
    I_j out and keeps that of I_j w_j, the model is pushed without end.

    Example:
        ``Plan(algorithm="fedcurv", options={"strength": 1.0}, local_epochs=5)``

    Attributes:
        strength: λ ≥ 0. Local steps diverge where 2λη_l·U exceeds 2: lower λ or η_l for models with large gradients.
    """

    name: ClassVar[str] = "fedcurv"
    title: ClassVar[str] = "FedCurv"
    source: ClassVar[str] = "arXiv:1910.07796, section 3"
    slots: ClassVar[tuple[str, ...]] = ("fisher", "fisher-mean")
    broadcast: ClassVar[tuple[str, ...]] = ("fisher", "fisher-mean")
    vectors: ClassVar[tuple[str, ...]] = ("fisher", "fisher-mean")
    site_state: ClassVar[tuple[str, ...]] = ("fisher", "fisher-mean", "round")
    no_feedback: ClassVar[frozenset[str]] = frozenset({"fisher", "fisher-mean"})
    only_mean: ClassVar[bool] = True

    strength: float = Field(default=1.0, ge=0)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse codecs that do not keep every coordinate of U and V to about its own size.

        Raises:
            PlanError: the penalty would pull w to another point than the others' models, zero above all.
        """
        if load_codec(spec.plan.compression).name not in _FAITHFUL:
            raise PlanError(
                f"algorithm 'fedcurv' pulls each coordinate to V/U, and compression {spec.plan.compression!r} changes "
                "the two unlike, so that it would pull elsewhere or push without end: use 'bfloat16' or 'float16', "
                "leave compression out, or use fedprox, which stands every codec"
            )

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self.strength)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server()


class _Client(ClientHalf):
    def __init__(self, strength: float) -> None:
        self._strength = strength

    def work(self, round: ClientRound) -> None:
        """Add 2λ(wU − V) to every gradient, U and V the sums over the others."""
        u, v = _of_the_others(round)
        two_lambda = 2 * self._strength

        def local_gradient(step: Step) -> None:
            step.gradients += two_lambda * (step.parameters * u - v)

        run = round.problem.run(gradient=local_gradient)
        round.send_change()
        self.local_state(round, run)

    def local_state(self, round: ClientRound, run: Run) -> None:
        fisher = round.problem.fisher()
        # Kept as the server decodes them: what is subtracted next round is what was added.
        round.state["fisher"] = round.send("fisher", fisher)
        round.state["fisher-mean"] = round.send("fisher-mean", fisher * round.problem.parameters)
        round.state["round"] = Vector({"number": np.array([round.number], dtype=np.int64)})


def _of_the_others(round: ClientRound) -> tuple[Vector, Vector]:
    """Return U and V without this site's part, which is in them only if its last update counted one round ago."""
    u, v = round.received["fisher"], round.received["fisher-mean"]
    last = round.state.get("round")
    if last is None or int(last["number"][0]) != round.number - 1:
        return u, v
    return u - round.state["fisher"], v - round.state["fisher-mean"]


class _Server(ServerHalf):
    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return by_plan(round, "delta") | uniform(round, "fisher", "fisher-mean")

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        return {**super().begin(round), "sites": float(len(round.sites))}

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        super().step(tile, scalars)
        for slot in ("fisher", "fisher-mean"):
            np.multiply(tile.mean[slot], scalars["sites"], out=tile.state[slot])
