"""Mimic: nothing but the truth, of one site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from federation.attacks.attack import Attack
from federation.compression.options import arguments_of, whole_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.attacks.attack import Array, Sight


@dataclass(frozen=True, slots=True)
class Mimic(Attack):
    """All hostile sites send what one honest site sends, round after round.

    Karimireddy, He, Jaggi: "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, section 3.2.
    Nothing sent is out of the ordinary, yet one site's data outweigh the others': rules that look for agreement follow,
    if sites differ. The paper picks the site that spreads most along the top direction of variance; here it is given.

        v_j = Δ_i

    Specification: ``mimic`` (the first honest site by name), ``mimic:2``.

    Attributes:
        index: i, counted over the honest sites in name order, from 0; beyond the last it begins anew.
    """

    index: int = 0
    name: ClassVar[str] = "mimic"
    source: ClassVar[str] = "arXiv:2006.09365, section 3.2"
    fewest_seen: ClassVar[int] = 2

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Mimic:
        """Make it from the texts behind the colon."""
        arguments_of("mimic:INDEX", arguments, 0, 1)
        return cls(whole_of(arguments[0], "index", 0, 9999)) if arguments else cls()

    @property
    def spec(self) -> str:
        """``mimic:i``."""
        return f"{self.name}:{self.index}" if self.index else self.name

    def updates(self, sight: Sight) -> Array:
        """Return Δ_i, for each."""
        return sight.everyone(sight.honest[self.index % len(sight.honest)])
