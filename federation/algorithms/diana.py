"""DIANA: compress the difference to what the server already expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf, ServerRound, ServerTile, advance, uniform
from federation.compression import load_codec, payload_damping
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound
    from federation.plan import ExperimentSpec


class Diana(Algorithm):
    r"""Site and server learn the same h_i ≈ the site's update; only the difference to it is compressed.

    Mishchenko, Gorbunov, Takáč, Richtárik: "Distributed Learning with Compressed Gradient Differences",
    arXiv:1901.09269, algorithm 1; step sizes from arXiv:1905.11261.

    $$m_i = C(\Delta_i - h_i), \quad h_i \leftarrow h_i + \alpha m_i, \quad
    x \leftarrow x + \eta_g \Bigl(h + \frac{1}{|S|} \sum_S m_i\Bigr), \quad
    h \leftarrow h + \frac{\alpha}{N} \sum_S m_i$$

    Δ_i = −η_l Σ g is the local change, so with one local step γ = η_g η_l; γ ≤ 1/(L_max(1 + 6ω/N)). h is the mean of
    all h_i, always: a late joiner starts with h_i = 0 while h is rescaled by N_old/N. Unlike plain compressed gradient
    descent it does not stall where sites differ.

    Example:
        ``Plan(algorithm="diana", compression="rand_k:0.1", local_steps=1)``

    Attributes:
        alpha: α, how fast h_i learns. None: 1/(1+ω) of the plan's compression; from 2/(1+ω) on h_i diverges.
    """

    name: ClassVar[str] = "diana"
    title: ClassVar[str] = "DIANA"
    source: ClassVar[str] = "arXiv:1901.09269, algorithm 1"
    slots: ClassVar[tuple[str, ...]] = ("shift",)
    rescaled: ClassVar[frozenset[str]] = frozenset({"shift"})
    site_state: ClassVar[tuple[str, ...]] = ("shift",)
    has_own_feedback: ClassVar[bool] = True
    needs_unbiased: ClassVar[bool] = True
    only_mean: ClassVar[bool] = True

    alpha: float | None = Field(default=None, gt=0, le=1)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse an α with which E‖h_i + αC(Δ_i − h_i) − Δ_i‖² = (1 − 2α + α²(1 + ω))‖Δ_i − h_i‖² does not shrink.

        Raises:
            PlanError: α is 2/(1+ω) or more.
        """
        damping = payload_damping(spec.schema_.parameters.widened, load_codec(spec.plan.compression))
        if self.alpha is not None and self.alpha >= 2 * damping:
            raise PlanError(
                f"algorithm 'diana' learns with alpha {self.alpha:g} and diverges from 2/(1+ω) on, which is "
                f"{2 * damping:.4g} with compression {spec.plan.compression!r} of this model: leave alpha out for "
                f"{damping:.4g}"
            )

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self.alpha)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server(self.alpha)


class _Client(ClientHalf):
    def __init__(self, alpha: float | None) -> None:
        self._alpha = alpha

    def work(self, round: ClientRound) -> None:
        h_i = round.state.setdefault("shift", round.start.zeros_like())
        alpha = self._alpha if self._alpha is not None else round.damping("delta")
        round.problem.run()
        m = round.send("delta", round.problem.parameters - round.start - h_i)
        round.state["shift"] = h_i + alpha * m


class _Server(ServerHalf):
    def __init__(self, alpha: float | None) -> None:
        self._alpha = alpha

    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return uniform(round, "delta")

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        alpha = self._alpha if self._alpha is not None else round.damping
        return {"eta": round.learning_rate, "share": alpha * len(round.sites) / round.total}

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        h, m = tile.state["shift"], tile.mean["delta"]
        # The old h first: this round's m are differences to it.
        advance(tile.x, scalars["eta"], h + m)
        h += scalars["share"] * m
