"""A factor that is given, or optimised against the rule in force.

Optimised: the τ that moves the aggregate farthest from where the honest updates alone would have it,

    τ* = argmax_τ ‖rule(honest ∪ f·v(τ)) − mean(honest)‖,

over τ from 1/8 to 32 by doubling, then by golden section between the neighbours of the best: 21 rules a round. The
norm need not have one maximum, so this is a lower bound of what the attack can do. An adversary that knows the rule and
all honest updates is nobody's site, but what stands it stands weaker ones (Shejwalkar, Houmansadr: "Manipulating the
Byzantine", NDSS 2021, section IV).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from federation.compression.options import arguments_of, number_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.attacks.attack import Array, Sight

OPTIMISED = "opt"
_DOUBLINGS = tuple(2.0**power for power in range(-3, 6))
_SECTIONS = 12
_GOLDEN = (math.sqrt(5) - 1) / 2
MOST = 1e6


def factor_of(name: str, arguments: Sequence[str], default: float | None) -> float | None:
    """Return the factor of a specification's arguments; None: optimised.

    Args:
        name: of the attack.
        arguments: none, a number, or ``opt``.
        default: where there is no argument; None: there must be one.

    Raises:
        ValueError: neither.
    """
    arguments_of(f"{name}:FACTOR or {name}:{OPTIMISED}", arguments, 0 if default is not None else 1, 1)
    if not arguments:
        return default
    return None if arguments[0] == OPTIMISED else number_of(arguments[0], "factor", 0.0, MOST)


def factor_text(factor: float | None) -> str:
    """Return a factor as its specification has it."""
    return OPTIMISED if factor is None else text_of(factor)


def best_factor(sight: Sight, sent: Callable[[float], Array]) -> float:
    """Return τ*; of equal ones the smallest that was tried.

    Args:
        sight: says the rule.
        sent: matrix the hostile sites send for a factor, like ``sight.own``.

    Raises:
        ValueError: the rule in force is not known.
    """
    rule, centre = sight.rule, sight.honest_mean
    if rule is None:
        raise ValueError("a factor optimised against the rule in force needs to know that rule; give a number")

    def damage(factor: float) -> float:
        reached = float(np.linalg.norm(rule(sent(factor)) - centre))
        return reached if math.isfinite(reached) else -math.inf

    found = {factor: damage(factor) for factor in _DOUBLINGS}
    place = max(range(len(_DOUBLINGS)), key=lambda index: found[_DOUBLINGS[index]])
    low, high = _DOUBLINGS[max(place - 1, 0)], _DOUBLINGS[min(place + 1, len(_DOUBLINGS) - 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    found[left], found[right] = damage(left), damage(right)
    for _ in range(_SECTIONS - 2):
        if found[left] >= found[right]:
            high, right = right, left
            left = high - _GOLDEN * (high - low)
            found[left] = damage(left)
        else:
            low, left = left, right
            right = low + _GOLDEN * (high - low)
            found[right] = damage(right)
    most = max(found.values())
    return min(factor for factor, value in found.items() if value == most)
