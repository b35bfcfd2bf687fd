"""Free rider: the model without the work."""

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
class FreeRider(Attack):
    """Each hostile site sends the model back as it came, or with noise that shrinks as an honest change would.

    Fraboni, Vidal, Lorenzi: "Free-rider Attacks on Model Aggregation in Federated Learning", AISTATS 2021, sections 2.3
    and 2.4. It slows learning down and bends nothing; what it steals is the model.

        v_j = σ t^{−1} ε,    ε ~ N(0, I)

    Specification: ``free_rider`` (σ = 0), ``free_rider:0.01``.

    Attributes:
        sigma: σ ≥ 0, noise of the first round in units of a coordinate of the change.
    """

    sigma: float = 0.0
    name: ClassVar[str] = "free_rider"
    source: ClassVar[str] = "arXiv:2006.11901, sections 2.3 and 2.4"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> FreeRider:
        """Make it from the texts behind the colon."""
        arguments_of("free_rider:SIGMA", arguments, 0, 1)
        return cls(number_of(arguments[0], "sigma", 0.0, MOST)) if arguments else cls()

    @property
    def spec(self) -> str:
        """``free_rider:σ``."""
        return f"{self.name}:{text_of(self.sigma)}" if self.sigma else self.name

    def updates(self, sight: Sight) -> Array:
        """Return nothing, or shrinking noise."""
        return (self.sigma / sight.round) * sight.rng.standard_normal(sight.own.shape)
