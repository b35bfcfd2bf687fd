"""Scaling: an honest update, too long."""

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
class Scaling(Attack):
    """Each hostile site sends s times what it learnt: its data count s-fold, or the step diverges.

    Bagdasaryan, Veit, Hua, Estrin, Shmatikov: "How To Backdoor Federated Learning", AISTATS 2020, equation 3, without
    the backdoor.

        v_j = s · Δ_j

    Specification: ``scaling:10``.

    Attributes:
        scale: s > 0.
    """

    scale: float = 10.0
    name: ClassVar[str] = "scaling"
    source: ClassVar[str] = "arXiv:1807.00459, equation 3"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Scaling:
        """Make it from the texts behind the colon."""
        arguments_of("scaling:SCALE", arguments, 0, 1)
        return cls(number_of(arguments[0], "scale", 0.0, MOST)) if arguments else cls()

    @property
    def spec(self) -> str:
        """``scaling:s``."""
        return f"{self.name}:{text_of(self.scale)}"

    def updates(self, sight: Sight) -> Array:
        """Return s · Δ_j."""
        return self.scale * sight.own
