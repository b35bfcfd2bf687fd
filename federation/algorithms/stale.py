"""Stale compensation: who comes late counts less, but counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.server import ServerHalf, ServerRound, by_plan

if TYPE_CHECKING:
    from federation.plan import Plan


class StaleCompensation(Algorithm):
    r"""Rounds that do not wait: an update that missed its round joins a later one, with a penalty for its age.

    FedAvg with the staleness weights that asynchronous methods use (arXiv:1903.03934, section 5.2), geometric in age.

    $$x \leftarrow x + \eta_g \frac{\sum_S p_i \lambda^{a_i} \Delta_i}{\sum_S p_i \lambda^{a_i}}, \qquad
    a_i = \text{rounds since the model that site } i \text{ trained from}$$

    A round ends when `k` updates have come, or at ``plan.deadline_s`` with those there are. A late joiner needs
    nothing.

    Example:
        ``Plan(algorithm="stale", options={"penalty": 0.5}, minimum_sites=10, quorum=8, deadline_s=60)``

    Attributes:
        penalty: λ in (0, 1]: 1 makes age no difference.
        k: updates that end a round. None: the plan's quorum, or the sites it needs.
        max_staleness: steps of the server after which a update is too old to be taken. None: it never is.
    """

    name: ClassVar[str] = "stale"
    title: ClassVar[str] = "Stale compensation"
    source: ClassVar[str] = "FedAvg with the staleness weights of arXiv:1903.03934, section 5.2"
    mode: ClassVar[Literal["rounds", "buffer"]] = "buffer"
    ends_at_deadline: ClassVar[bool] = True

    penalty: float = Field(default=0.5, gt=0, le=1)
    k: int | None = Field(default=None, ge=1)
    max_staleness: int | None = Field(default=None, ge=0)

    def stalest(self) -> int | None:
        """Return the most steps an update may be old."""
        return self.max_staleness

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server(self.penalty)

    def buffer_size(self, plan: Plan) -> int:
        """Return the updates that end a round."""
        return self.k or plan.quorum or plan.sites_needed


class _Server(ServerHalf):
    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        p = by_plan(round, "delta")["delta"]
        return {"delta": [p_i * self._penalty**site.staleness for p_i, site in zip(p, round.sites, strict=True)]}
