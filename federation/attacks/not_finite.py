"""Infinity and NaN: what admission is for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from federation.attacks.attack import Attack
from federation.compression.options import arguments_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.attacks.attack import Array, Sight


@dataclass(frozen=True, slots=True)
class NotFinite(Attack):
    """Each hostile site sends nothing but infinity or NaN: one such number in a mean spoils the model for good.

    No rule sees it: an update with a number that is not finite is refused when it arrives. The round closes with those
    left if they are the plan's `quorum`. Otherwise it is tried again, without the refused while enough other sites are
    there; where all the sites of a federation are needed, one that sends this ends the experiment.

    Specification: ``infinity``, ``nan``.

    Attributes:
        value: the number.
    """

    value: float
    name: ClassVar[str] = "not_finite"
    source: ClassVar[str] = "what a diverged or broken trainer sends"

    @classmethod
    def infinity(cls, arguments: Sequence[str]) -> NotFinite:
        """Make the one of infinity."""
        arguments_of("infinity", arguments, 0, 0)
        return cls(math.inf)

    @classmethod
    def nan(cls, arguments: Sequence[str]) -> NotFinite:
        """Make the one of NaN."""
        arguments_of("nan", arguments, 0, 0)
        return cls(math.nan)

    @property
    def spec(self) -> str:
        """``infinity`` or ``nan``."""
        return "nan" if math.isnan(self.value) else "infinity"

    def updates(self, sight: Sight) -> Array:
        """Return the number everywhere."""
        updates = sight.own.copy()
        updates[...] = self.value
        return updates
