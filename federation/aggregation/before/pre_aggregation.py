"""What a pre-aggregation is: a step in front of a rule, written as a choice such as ``nnm`` or ``bucketing:2``.

Several run in the order of the plan, each on what the one before made. What comes out may be fewer vectors than went
in; the rule's condition must hold for those, with the same f.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from federation.errors import PlanError

if TYPE_CHECKING:
    from federation.aggregation.mixing import MixedTiles
    from federation.aggregation.rule import RuleContext
    from federation.aggregation.tiles import TileSource


class PreAggregation(BaseModel, ABC):
    """One pre-aggregation. Its only field, if it has one, is what is written after the colon.

    Attributes:
        name: as in ``plan.pre_aggregation``.
        title: as its authors write it.
        source: paper, and place in it.
        needs_byzantine: whether it must be told f.
        keeps_sites: whether each vector that comes out is still some site's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    needs_byzantine: ClassVar[bool] = False
    keeps_sites: ClassVar[bool] = True

    def vectors(self, count: int) -> int:
        """Return how many vectors come out of `count`."""
        return count

    def check(self, count: int, byzantine: int) -> None:
        """Check that there is an honest majority.

        Raises:
            PlanError: there is not.
        """
        if self.needs_byzantine and count <= 2 * byzantine:
            raise PlanError(
                f"pre_aggregation {self.name!r} stands byzantine = {byzantine} only where 2f < n: it needs "
                f"{2 * byzantine + 1} updates or more and has {count}"
            )

    @abstractmethod
    def wrap(self, source: TileSource, context: RuleContext) -> MixedTiles:
        """Return the vectors that the rule shall see; may read the source.

        Args:
            source: at least one vector, float, finite.
            context: f, the round's randomness, threads.
        """
