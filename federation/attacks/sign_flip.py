"""Sign flip: the way back."""

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
class SignFlip(Attack):
    """Each hostile site sends −s times the honest mean: the step that undoes the honest ones.

    Li, Xu, Chen, Giannakis, Ling: "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning from
    Heterogeneous Datasets", AAAI 2019, section 5 (there −s times the site's own).

        v_j = −s · (1/h) Σ_i Δ_i

    Specification: ``sign_flip`` (s = 1), ``sign_flip:4``.

    Attributes:
        scale: s > 0.
    """

    scale: float = 1.0
    name: ClassVar[str] = "sign_flip"
    source: ClassVar[str] = "arXiv:1811.03761, section 5"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> SignFlip:
        """Make it from the texts behind the colon."""
        arguments_of("sign_flip:SCALE", arguments, 0, 1)
        return cls(number_of(arguments[0], "scale", 0.0, MOST)) if arguments else cls()

    @property
    def spec(self) -> str:
        """``sign_flip:s``."""
        return f"{self.name}:{text_of(self.scale)}" if self.scale != 1 else self.name

    def updates(self, sight: Sight) -> Array:
        """Return −s · mean, for each."""
        return sight.everyone(-self.scale * sight.honest_mean)
