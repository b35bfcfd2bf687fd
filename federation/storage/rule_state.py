"""What a rule keeps from round to round, file to file: read beside the updates, written as the tiles come by.

Each vector has the layout and dtypes of the parameters. It is rounded to them once a round, like a method's state,
and is committed with the candidate that it goes with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.tiles import TILE_ELEMENTS
from federation.storage.rounding import Rounder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from federation.aggregation.combiner import Combiner
    from federation.aggregation.rule import AggregationRule, RuleReport
    from federation.aggregation.tiles import Array, Tile, TileSource
    from federation.storage.disk import Readable
    from federation.storage.memory import ModelSink


def state_name(vector: str) -> str:
    """Return the name under which a rule's vector is stored: none that a method's state can have."""
    return f"rule-{vector}"


class StoredVector:
    """One vector of a rule. Implements `StateReader`.

    Args:
        stored: its flat buffer, laid out as the parameters.
    """

    def __init__(self, stored: Readable) -> None:
        self._stored = stored

    def read(self, tile: Tile, out: Array) -> None:
        """Fill `out`, of the tile's dtype, with its elements."""
        self._stored.pread_into(tile.offset, out.view(np.uint8).data)


class KeepingCombiner:
    """A combiner that also writes what its rule keeps for the next round. Implements `Combines`.

    Args:
        combiner: of this round.
        rule: its rule.
        state: the rule's vectors of the round before, by name.
        writers: for the next ones; finished by the caller.

    Raises:
        ValueError: the vectors that are read or written are not those of the rule.
    """

    def __init__(
        self,
        combiner: Combiner,
        rule: AggregationRule,
        state: Mapping[str, Readable],
        writers: Mapping[str, ModelSink],
    ) -> None:
        if not set(rule.state) == state.keys() == writers.keys():
            raise ValueError(
                f"rule {rule.name!r} keeps {sorted(rule.state)}; {sorted(state)} are read and {sorted(writers)} written"
            )
        self._combiner = combiner
        self._rule = rule
        self._state = state
        self._writers = writers

    @property
    def report(self) -> RuleReport | None:
        """What the rule says of the round; None until the source is exhausted."""
        return self._combiner.report

    def combine(self, source: TileSource) -> Iterator[tuple[Tile, Array]]:
        """Yield what the rule yields.

        Raises:
            ValueError, PlanError: as the combiner; a vector that is not finite is a PlanError too.
        """
        rounders = {name: Rounder(TILE_ELEMENTS, f"state {name!r} of rule {self._rule.name!r}") for name in self._state}
        for tile, values in self._combiner.combine(source):
            before = {name: rounder.read(self._state[name], tile) for name, rounder in rounders.items()}
            for name, vector in self._rule.advance(before, values).items():
                self._writers[name].append(rounders[name].round(tile, vector).view(np.uint8).data)
            yield tile, values
