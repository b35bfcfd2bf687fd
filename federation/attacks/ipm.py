"""Inner-product manipulation: short and backwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from federation.attacks.attack import Attack
from federation.attacks.factor import best_factor, factor_of, factor_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.attacks.attack import Array, Sight


@dataclass(frozen=True, slots=True)
class Ipm(Attack):
    """All hostile sites send −τ times the honest mean, so that ⟨aggregate, honest mean⟩ turns negative.

    Xie, Koyejo, Gupta: "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2020,
    section 4. A small τ hides where updates differ much; with the mean any τ > (n − f)/f turns the step round.

        v_j = −τ · (1/h) Σ_i Δ_i

    Specification: ``ipm`` (τ = 2), ``ipm:0.5``, ``ipm:opt`` (optimised against the rule in force).

    Attributes:
        factor: τ > 0; None: optimised.
    """

    factor: float | None = 2.0
    name: ClassVar[str] = "ipm"
    source: ClassVar[str] = "arXiv:1903.03936, section 4"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Ipm:
        """Make it from the texts behind the colon."""
        return cls(factor_of(cls.name, arguments, 2.0))

    @property
    def spec(self) -> str:
        """``ipm:τ``."""
        return f"{self.name}:{factor_text(self.factor)}"

    def updates(self, sight: Sight) -> Array:
        """Return −τ · mean, for each.

        Raises:
            ValueError: optimised, and the rule in force is not known.
        """
        mean = sight.honest_mean
        factor = self.factor
        if factor is None:
            factor = best_factor(sight, lambda tau: sight.everyone(-tau * mean))
        return sight.everyone(-factor * mean)
