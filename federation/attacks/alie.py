"""A little is enough: lies within the spread of the honest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar

from federation.attacks.attack import Attack
from federation.attacks.factor import best_factor, factor_of, factor_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.attacks.attack import Array, Sight


@dataclass(frozen=True, slots=True)
class Alie(Attack):
    """All hostile sites send the honest mean, moved by a few standard deviations in every coordinate.

    Baruch, Baruch, Goldberg: "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019,
    algorithm 3. Each coordinate lies among honest values, and all are off in one direction:

        v_j = μ + τ σ,    μ, σ per coordinate over the honest updates

    σ divides by h, not h − 1 (ddof 0), as the authors' code does. Their own τ makes the colluders with the
    ⌊n/2 + 1⌋ − f honest updates farthest out a majority:

        s = ⌊n/2 + 1⌋ − f,    z = Φ⁻¹((n − f − s)/(n − f))

    For small f it is 0 (n = 10, f = 2) and the attack nothing: give a number there.

    Specification: ``alie`` (τ = z), ``alie:1.5``, ``alie:opt`` (optimised against the rule in force).

    Attributes:
        factor: τ > 0; None: optimised; 0: z.
    """

    factor: float | None = 0.0
    name: ClassVar[str] = "alie"
    source: ClassVar[str] = "arXiv:1902.06156, algorithm 3"
    fewest_seen: ClassVar[int] = 2

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Alie:
        """Make it from the texts behind the colon."""
        return cls(factor_of(cls.name, arguments, 0.0))

    @property
    def spec(self) -> str:
        """``alie:τ``."""
        return self.name if self.factor == 0 else f"{self.name}:{factor_text(self.factor)}"

    def updates(self, sight: Sight) -> Array:
        """Return μ + τσ, for each.

        Raises:
            ValueError: optimised, and the rule in force is not known.
        """
        mean, deviation = sight.honest_mean, sight.honest.std(axis=0)
        if self.factor is None:
            factor = best_factor(sight, lambda tau: sight.everyone(mean + tau * deviation))
        else:
            factor = self.factor or z_of(sight.total, sight.hostile)
        return sight.everyone(mean + factor * deviation)


def z_of(total: int, hostile: int) -> float:
    """Return z of n = `total` and f = `hostile`: 0 where the formula gives no number above it."""
    supporters = math.floor(total / 2 + 1) - hostile
    share = (total - hostile - supporters) / max(total - hostile, 1)
    if share >= 1:
        return 3.0  # the hostile are a majority by themselves: Φ⁻¹(1) has no end
    return max(NormalDist().inv_cdf(share), 0.0) if share > 0 else 0.0
