"""A plan's rule behind its pre-aggregations, for one round: what the storage layer combines ``delta`` with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.aggregation.rule import NeverEnoughError, RuleContext, RuleReport
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from random import Random

    from federation.aggregation.before.pre_aggregation import PreAggregation
    from federation.aggregation.rule import AggregationRule, StateReader
    from federation.aggregation.tiles import Array, Tile, TileSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """What a plan does to the updates of every round.

    Attributes:
        rule: with its options.
        before: pre-aggregations, in order.
        byzantine: f, hostile sites to be stood.
    """

    rule: AggregationRule
    before: tuple[PreAggregation, ...] = ()
    byzantine: int = 0

    def check(self, updates: int) -> None:
        """Check that every condition holds for so many updates.

        Raises:
            PlanError: one does not; the text says which, and how many it needs.
            NeverEnoughError: no number of updates would do.
        """
        trusted = self.rule.trusted_site
        losing = [step.name for step in self.before if not step.keeps_sites]
        if trusted is not None and losing:
            raise NeverEnoughError(
                f"rule {self.rule.name!r} trusts site {trusted!r}, whose vector is none of its own after "
                f"pre_aggregation {losing[0]!r}: leave that out"
            )
        count = updates
        for step in self.before:
            step.check(count, self.byzantine)
            count = step.vectors(count)
        try:
            self.rule.check(count, self.byzantine)
        except PlanError as error:
            if count == updates:
                raise
            raise type(error)(f"{error}: {updates} updates, {count} after pre_aggregation") from error

    def for_round(
        self,
        random: Callable[[str], Random],
        state: Mapping[str, StateReader] | None = None,
        *,
        threads: int | None = None,
    ) -> Combiner:
        """Return a combiner for one round.

        Args:
            random: returns the round's random stream for a purpose.
            state: the rule's vectors of the round before.
            threads: most threads; None: one per core, as far as memory allows (`columns.threads_for`).
        """
        return Combiner(self, RuleContext(byzantine=self.byzantine, random=random, state=state or {}, threads=threads))


class Combiner:
    """One round's combination. Implements `Combines`.

    Attributes:
        report: what the rule says of the round; None until the source is exhausted.
    """

    def __init__(self, aggregation: Aggregation, context: RuleContext) -> None:
        self.report: RuleReport | None = None
        self._aggregation = aggregation
        self._context = context

    def combine(self, source: TileSource) -> Iterator[tuple[Tile, Array]]:
        """Yield each tile with its combined elements as float64, in an array that the next step may overwrite.

        Raises:
            ValueError: there is no site.
            PlanError: there are too few, or too many, for the plan's rule; nothing is then combined.
        """
        self._aggregation.check(len(source.sites))
        for step in self._aggregation.before:
            source = step.wrap(source, self._context)
        self.report = yield from self._aggregation.rule.combine(source, self._context)
