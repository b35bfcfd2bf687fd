"""What a rule of aggregation is, and how one is found by name.

Rules, in order:

1. A rule is pure: it reads tiles and yields tiles; time, files and randomness are not its own.
2. It yields every tile of the source once, in order. It may read any tile any number of times, before and between.
3. Its result depends on names and weights of the sites and on their elements, never on the order of arrival.
4. Further rules are plugins the operator installed, in the entry-point group ``federation.aggregation_rules``; a plan
   names one, and no code comes from the wire.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from federation.aggregation.mean import WeightedMean
from federation.errors import ConfigurationError, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.aggregation.tiles import Array, Tile, TileSource

ENTRY_POINT_GROUP = "federation.aggregation_rules"


class AggregationRule(Protocol):
    """Combines the updates of a round, coordinate by coordinate or by looking at them whole."""

    def combine(self, source: TileSource) -> Iterator[tuple[Tile, Array]]:
        """Yield each tile of the source with its combined elements.

        Args:
            source: the updates; float tiles only.

        Yields:
            The tile and its elements as float64, in an array that the rule may overwrite at the next step.

        Raises:
            ValueError: no site, or no site with a weight above 0.
        """
        ...


_BUILT_IN: dict[str, Callable[[], AggregationRule]] = {"mean": WeightedMean}


def rule_names() -> list[str]:
    """Return the names a plan may use here: ours and those of installed plugins."""
    return sorted({*_BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})


def load_rule(name: str) -> AggregationRule:
    """Return the rule registered under `name`. Our own names cannot be taken by a plugin.

    Raises:
        PlanError: there is none; the text names the nearest.
        ConfigurationError: a plugin's entry point cannot be loaded.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            factory: Callable[[], AggregationRule] = entry.load()
            return factory()
        except Exception as error:
            raise ConfigurationError(f"aggregation rule {name!r} ({entry.value}) cannot be loaded: {error}") from error
    names = rule_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise PlanError(f"there is no aggregation rule {name[:80]!r} here, only {', '.join(names)}{hint}")
