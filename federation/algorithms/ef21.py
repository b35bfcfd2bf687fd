"""EF21: error feedback as a running estimate on both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf, ServerRound, ServerTile, advance, uniform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound


class Ef21(Algorithm):
    r"""Site and server keep the same g_i; the site sends the compressed correction to it, biased compressors included.

    Richtárik, Sokolov, Fatkhullin: "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback",
    NeurIPS 2021, arXiv:2106.05203, algorithm 2.

    $$m_i = C(\Delta_i - g_i), \qquad g_i \leftarrow g_i + m_i, \qquad g \leftarrow g + \frac{1}{N} \sum_S m_i,
    \qquad x \leftarrow x + \eta_g g$$

    Δ_i = −η_l ∇f_i(x) for one local step. g is the mean of all g_i, always: unsampled sites keep theirs, and a late
    joiner starts with g_i = 0 while g is rescaled by N_old/N. It takes the place of the error feedback of the codec. An
    unbiased codec is damped by 1/(1+ω) at both ends, which makes it contractive.

    Example:
        ``Plan(algorithm="ef21", compression="top_k:0.05", local_steps=1)``
    """

    name: ClassVar[str] = "ef21"
    title: ClassVar[str] = "EF21"
    source: ClassVar[str] = "arXiv:2106.05203, algorithm 2"
    slots: ClassVar[tuple[str, ...]] = ("estimate",)
    rescaled: ClassVar[frozenset[str]] = frozenset({"estimate"})
    site_state: ClassVar[tuple[str, ...]] = ("estimate",)
    has_own_feedback: ClassVar[bool] = True
    only_mean: ClassVar[bool] = True

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client()

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server()


class _Client(ClientHalf):
    def work(self, round: ClientRound) -> None:
        g_i = round.state.setdefault("estimate", round.start.zeros_like())
        round.problem.run()
        m = round.send("delta", round.problem.parameters - round.start - g_i)
        round.state["estimate"] = g_i + round.damping("delta") * m


class _Server(ServerHalf):
    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return uniform(round, "delta")

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        return {"eta": round.learning_rate, "share": round.damping * len(round.sites) / round.total}

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        g = tile.state["estimate"]
        g += scalars["share"] * tile.mean["delta"]
        advance(tile.x, scalars["eta"], g)
