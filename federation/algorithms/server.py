"""The server half of a method: server gradient, optimizer and global state (hooks 1, 2, 6, 7 and 8).

1. `weights` (from what is known before any payload is read), then the plan's rule combines ``delta`` and the weighted
   mean every other vector, then one pass of `step` over equal tiles of model, means and state. Payloads are read once.
2. Tiles are float64; what is stored afterwards is rounded once to each tensor's dtype.
3. ServerGradient points *along* the change: mean of Δ_i, where the scheme's G = −mean, so signs here read x += η·mean.
4. Sums over sites run in name order with `math.fsum`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.rounds.shares import capped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.names import SiteName
    from federation.plan import Plan
    from federation.tensors.buffers import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What is known of one site's update before its payloads are read.

    Attributes:
        site: its name.
        examples: n_i, capped by the plan.
        steps: τ_i, local optimizer steps.
        scalars: the method's own scalars, by name.
        norm: ‖Δ_i‖₂, decoded; 0 unless the method needs norms.
        staleness: model versions committed since the one this site trained from; 0 in synchronous rounds.
    """

    site: SiteName
    examples: int
    steps: int
    scalars: Mapping[str, float]
    norm: float = 0.0
    staleness: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRound:
    """One round at the server.

    Attributes:
        number: t, from 1.
        plan: the plan.
        sites: S, the sites that counted, in name order.
        total: N, all sites; see `count_sites`.
        learning_rate: η_g(t).
        damping: 1/(1 + ω) of the plan's compression on the model's parameters; 1 for identity and biased codecs.
    """

    number: int
    plan: Plan
    sites: tuple[SiteFacts, ...]
    total: int
    learning_rate: float
    damping: float = 1.0


@dataclass(slots=True, kw_only=True)
class ServerTile:
    """Equal pieces of everything the server half works on: one-dimensional float64 arrays of one length.

    Attributes:
        x: the model; written in place.
        mean: combined payloads by name; the half may overwrite them.
        state: server state by slot name; written in place.
        start: first element within the vector of all parameters.
    """

    x: Array
    mean: Mapping[str, Array]
    state: Mapping[str, Array]
    start: int


def examples(round: ServerRound, *payloads: str) -> dict[str, list[float]]:
    """Return weights p_i = n_i for each payload, none above the plan's ``max_share`` of their sum."""
    weights = capped([float(site.examples) for site in round.sites], round.plan.max_share)
    return {name: list(weights) for name in payloads}


def uniform(round: ServerRound, *payloads: str) -> dict[str, list[float]]:
    """Return weights p_i = 1 for each payload."""
    return {name: [1.0] * len(round.sites) for name in payloads}


def by_plan(round: ServerRound, *payloads: str) -> dict[str, list[float]]:
    """Return weights as ``plan.weighting`` says, for each payload."""
    return (uniform if round.plan.weighting == "uniform" else examples)(round, *payloads)


def count_sites(previous: int, connected: int, plan: Plan) -> int:
    """Return N, the sites the federation has: the most ever connected, and at least the plan's ``sites``.

    N never falls: a site that is away keeps its state, and its share of the server's. Where N grows, slots that are
    means over all sites are rescaled by N_old/N before the step, since the newcomer starts with zeros.
    """
    return max(previous, connected, plan.sites or 0)


class ServerHalf:
    """FedAvg's server half: x ← x + η_g Σ p_i Δ_i / Σ p_i."""

    def initial(self, slot: str) -> float:
        """InitializeServerState: the value every element of `slot` starts with."""
        return 0.0

    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        """ServerGradient: p_i of each site, in the order of ``round.sites``, for ``delta`` and every other vector.

        The rule divides by Σ p_i. A vector that is not named weighs as ``delta``.
        """
        return by_plan(round, "delta")

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        """Return the round's scalars for `step`, computed once from facts of the sites."""
        return {"eta": round.learning_rate}

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        """ServerOpt and ServerGlobalState: write the new model and state into the tile."""
        advance(tile.x, scalars["eta"], tile.mean["delta"])


def advance(x: Array, eta: float, direction: Array) -> None:
    """Add η·direction to x in place; with η = 1 not even a multiplication, so the sum is FedAvg's to the bit."""
    if eta == 1.0:
        x += direction
    else:
        x += eta * direction
