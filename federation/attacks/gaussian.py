"""Gaussian noise: a site that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from federation.attacks.attack import Attack
from federation.attacks.factor import MOST
from federation.compression.options import arguments_of, number_of, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.attacks.attack import Array, Sight


@dataclass(frozen=True, slots=True)
class Gaussian(Attack):
    """Each hostile site sends noise of its own.

    Blanchard, El Mhamdi, Guerraoui, Stainer: "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017, section 5 (there σ = 200, on gradients).

        v_j ~ N(0, σ² I)

    Specification: ``gaussian:0.5``.

    Attributes:
        sigma: σ > 0, in units of a coordinate of the change.
    """

    sigma: float = 1.0
    name: ClassVar[str] = "gaussian"
    source: ClassVar[str] = "arXiv:1703.02757, section 5"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Gaussian:
        """Make it from the texts behind the colon."""
        arguments_of("gaussian:SIGMA", arguments, 0, 1)
        return cls(number_of(arguments[0], "sigma", 0.0, MOST)) if arguments else cls()

    @property
    def spec(self) -> str:
        """``gaussian:σ``."""
        return f"{self.name}:{text_of(self.sigma)}"

    def updates(self, sight: Sight) -> Array:
        """Return noise."""
        return self.sigma * sight.rng.standard_normal(sight.own.shape)
