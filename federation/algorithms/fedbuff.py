"""FedBuff: a step whenever K changes have come in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.server import ServerHalf, ServerRound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.plan import Plan


class FedBuff(Algorithm):
    r"""Sites train all the time; the server waits for any K changes, not for particular sites.

    Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: "Federated Learning with Buffered Asynchronous Aggregation",
    AISTATS 2022, arXiv:2106.06639, algorithm 1 and section 5.

    $$x \leftarrow x + \frac{\eta_g}{K} \sum_{i=1}^{K} s_i \Delta_i, \qquad s_i = (1 + \text{staleness}_i)^{-1/2}$$

    Divided by K, not by Σs_i: a buffer of old changes makes a shorter step. A late joiner needs nothing. A site has one
    change in the buffer at most, so where fewer than K sites take part, K is their number.

    Example:
        ``Plan(algorithm="fedbuff", options={"k": 10}, server_learning_rate=1.0)``

    Attributes:
        k: K, changes a step takes.
        max_staleness: steps of the server after which a change is too old to be taken. None: it never is.
    """

    name: ClassVar[str] = "fedbuff"
    title: ClassVar[str] = "FedBuff"
    source: ClassVar[str] = "arXiv:2106.06639, algorithm 1"
    mode: ClassVar[Literal["rounds", "buffer"]] = "buffer"

    k: int = Field(default=10, ge=1)
    max_staleness: int | None = Field(default=None, ge=0)

    def stalest(self) -> int | None:
        """Return the most steps an update may be old."""
        return self.max_staleness

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server()

    def buffer_size(self, plan: Plan) -> int:
        """Return K."""
        return self.k


class _Server(ServerHalf):
    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return {"delta": [(1 + site.staleness) ** -0.5 for site in round.sites]}

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        total = math.fsum(self.weights(round)["delta"])
        return {"eta": round.learning_rate * (total / len(round.sites))}
