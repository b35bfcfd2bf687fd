"""MARINA: compress differences of gradients, and send them whole once in a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf, shared_stream
from federation.algorithms.server import ServerHalf, ServerRound, ServerTile, advance, uniform
from federation.compression import load_codec, payload_damping
from federation.errors import PlanError

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound
    from federation.plan import ExperimentSpec


class Marina(Algorithm):
    r"""The server's estimate g moves by compressed differences; with probability p a round sends whole updates.

    Gorbunov, Burlachenko, Li, Richtárik: "MARINA: Faster Non-Convex Distributed Learning with Compression", ICML 2021,
    arXiv:2102.07845, algorithm 1; with ``plan.sample`` its algorithm 4, PP-MARINA.

    $$c \sim \text{Be}(p), \qquad g^+ = \begin{cases} \frac{1}{N} \sum_i \Delta_i(x^+) & c = 1 \\
    g + \frac{1}{|S|} \sum_S C\bigl(\Delta_i(x^+) - \Delta_i(x)\bigr) & c = 0 \end{cases}, \qquad
    x \leftarrow x + \eta_g g$$

    Δ_i(x) = −η_l ∇f_i(x) for one local step; both changes of a difference use the same batches. The coin is one for
    all; the first round is a c = 1 round, and such a round asks every connected site, whatever the plan samples.
    γ = η_g η_l ≤ 1/(L(1 + √((1−p)ω/(pN)))). The previous model travels with the model, so a site that missed a round,
    or a late joiner, has the same difference to compute as everyone; g has no part per site, so nothing is rescaled.

    Example:
        ``Plan(algorithm="marina", compression="rand_k:0.1", local_steps=1, estimator="full")``

    Attributes:
        p: probability of a whole round, in (0, 1]. None: 1/(1+ω) of the plan's compression.
    """

    name: ClassVar[str] = "marina"
    title: ClassVar[str] = "MARINA"
    source: ClassVar[str] = "arXiv:2102.07845, algorithm 1"
    slots: ClassVar[tuple[str, ...]] = ("estimate", "previous")
    broadcast: ClassVar[tuple[str, ...]] = ("previous",)
    has_own_feedback: ClassVar[bool] = True
    needs_unbiased: ClassVar[bool] = True
    only_mean: ClassVar[bool] = True
    needs_exact_model: ClassVar[str] = "compares changes at the server's last two models"

    p: float | None = Field(default=None, gt=0, le=1)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse what would add up changes of unlike steps or of some sites only.

        Raises:
            PlanError: the local rate changes over rounds, or a whole round may end without a site.
        """
        if spec.plan.local_schedule != "constant":
            raise PlanError("algorithm 'marina' adds up changes of equal local steps: set local_schedule = 'constant'")
        if spec.plan.optimizer_state != "reset":
            raise PlanError("algorithm 'marina' trains twice a round from one state: set optimizer_state = 'reset'")
        if spec.plan.quorum is not None:
            raise PlanError("algorithm 'marina' needs every site asked to answer: leave quorum out")

    def asks_all(self, spec: ExperimentSpec, round_number: int) -> bool:
        """Tell whether the coin of this round is c = 1."""
        coin = shared_stream(spec.plan.seed, round_number, "coin")
        damping = payload_damping(spec.schema_.parameters.widened, load_codec(spec.plan.compression))
        return _is_whole(round_number, self.p, damping, coin)

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self.p)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server(self.p)


def _is_whole(number: int, p: float | None, damping: float, coin: random.Random) -> bool:
    """Toss c: the same arguments, and so the same side, at every site, at the server and where sites are drawn."""
    return number == 1 or coin.random() < (p if p is not None else damping)


class _Client(ClientHalf):
    def __init__(self, p: float | None) -> None:
        self._p = p

    def work(self, round: ClientRound) -> None:
        """Send the local change at x whole, or what it differs from that at the previous model, compressed."""
        problem, x = round.problem, round.start
        if _is_whole(round.number, self._p, round.damping("delta"), round.shared_rng("coin")):
            problem.run()
            round.send("delta", problem.parameters - x, whole=True)
            return
        # The older model first, so that buffers and metrics reported are those of the newer.
        previous = round.received["previous"]
        problem.parameters.assign(previous)
        previous = problem.parameters.widened().copy()  # as the model has it: half precision was rounded
        problem.run()
        older = problem.parameters - previous
        problem.parameters.assign(x)
        problem.run()
        round.send("delta", problem.parameters - x - older)


class _Server(ServerHalf):
    def __init__(self, p: float | None) -> None:
        self._p = p

    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return uniform(round, "delta")

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        coin = shared_stream(round.plan.seed, round.number, "coin")
        is_whole = _is_whole(round.number, self._p, round.damping, coin)
        return {"eta": round.learning_rate, "kept": 0.0 if is_whole else 1.0}

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        g = tile.state["estimate"]
        g *= scalars["kept"]
        g += tile.mean["delta"]
        tile.state["previous"][:] = tile.x
        advance(tile.x, scalars["eta"], g)
