"""How much one site may weigh: no share of Σp above a cap, whatever examples a site claims. Pure.

Weights by examples are the senders' word. A cap m bounds what that word can buy: where some p_i is more than m of Σp,
the sites above it get exactly m and the others keep their proportions among themselves. Rules:

1. The cap is true *after* normalising: capped weights lie at one level c = m·R / (1 − k·m), with k sites capped and R
   the sum of the others; k grows until no other site is above c (water-filling).
2. Order is kept: who claims more never weighs less. Weights that need no cap come back as they are, to the bit.
3. A cap that cannot hold for the fewest updates a round may close with (m·n < 1) is refused at submission.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from federation.errors import PlanError
from federation.rounds.sampling import takes_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.plan import Plan

_SLACK = 1e-12
"""1/3 of three sites is a cap that holds, though 3 · (1/3) may round to less than 1."""


def capped(weights: Sequence[float], max_share: float | None) -> list[float]:
    """Return the weights under a cap on each one's share of their sum; not normalised.

    Args:
        weights: p_i, finite and 0 or more.
        max_share: m in (0, 1]; None: no cap.

    Raises:
        PlanError: the cap cannot hold: too few sites have a weight above 0.
    """
    total = math.fsum(weights)
    if max_share is None or all(weight <= max_share * total * (1 + _SLACK) for weight in weights):
        return list(weights)
    order = sorted(range(len(weights)), key=lambda index: -weights[index])
    positive = sum(1 for weight in weights if weight > 0)
    if positive * max_share < 1 - _SLACK:
        raise PlanError(
            f"max_share is {max_share:g}, but only {positive} of the round's updates weigh anything: a cap of "
            f"{max_share:g} needs {fewest_for(max_share)}; raise max_share or quorum"
        )
    for count in range(1, positive):
        rest = math.fsum(weights[index] for index in order[count:])
        room = 1 - count * max_share
        if room <= _SLACK:
            break
        level, largest = max_share * rest / room, weights[order[count]]
        if largest <= level * (1 + _SLACK):
            above = set(order[:count])
            return [max(level, largest) if index in above else weight for index, weight in enumerate(weights)]
    # As many sites as the cap needs, and no more: all of them weigh alike.
    return [float(weight > 0) for weight in weights]


def fewest_for(max_share: float) -> int:
    """Return how many updates a round needs for no share to be above the cap."""
    return math.ceil(1 / max_share - _SLACK)


def fewest_updates(plan: Plan, *, is_asynchronous: bool) -> int:
    """Return the fewest updates a round may close with.

    Its quorum; without one all that were asked, and those are no fewer than the connected sites a round needs, or the
    sample drawn from them. A sampler that leaves the number to chance, or an asynchronous method, may leave one.
    """
    if is_asynchronous:
        return 1
    if plan.quorum is not None:
        return plan.quorum
    if not takes_count(plan.sampler):
        return 1
    return min(plan.minimum_sites, plan.sample or plan.minimum_sites)


def explain_no_spare(plan: Plan) -> str:
    """Return why hostile or broken sites can end the experiment by updates that are refused; "" if they cannot.

    Such an update is a missing answer, whatever the rule stands. `byzantine` says how many there may be; a plan with a
    robust rule that leaves it at 0 may expect one. A plain mean expects none, and is not asked.
    """
    asked = plan.sample or plan.sites_wanted
    needed = plan.quorum or asked
    is_plain = plan.rule == "mean" and not plan.pre_aggregation
    expected = plan.byzantine or int(not is_plain)
    if not expected or needed <= asked - expected or asked == 1:
        return ""
    why = f"byzantine is {plan.byzantine}, but a round" if plan.byzantine else "a round"
    return (
        f"{why} needs {needed} of {asked} updates, and one that is refused, such as of NaN, is a missing answer: "
        f"{asked - needed + 1} hostile or broken can end the experiment. Set quorum, and minimum_sites, to "
        f"{asked - expected} or fewer if the rule allows"
    )


def check_max_share(plan: Plan, *, is_asynchronous: bool) -> None:
    """Refuse a cap that cannot hold in every round.

    Raises:
        PlanError: says what to change.
    """
    fewest = fewest_updates(plan, is_asynchronous=is_asynchronous)
    if plan.max_share is not None and plan.max_share * fewest < 1 - _SLACK:
        raise PlanError(
            f"max_share is {plan.max_share:g}, but a round may close with {fewest} updates, of which one weighs "
            f"{1 / fewest:g} at least: raise max_share to {1 / fewest:g} or more, or let rounds need "
            f"{fewest_for(plan.max_share)} updates (quorum, or minimum_sites where every site must answer)"
        )
