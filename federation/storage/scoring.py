"""Scores of the updates of a round, taken in passing: beside the combination, from tiles that were just read.

The rule's results pass through `Scoring.watch` as they come. Where a rule goes through its tiles once, as the mean
does, whichever thread has made a piece of one scores it while it is in cache (`federation.aggregation.watching`).
Behind any other rule the tiles are read once more, from the page cache, and scored by as many threads of their own.
Sums run in tile order, piece by piece: the same bytes every time, whoever took them.

Who has better to do than to wait for the scores of a small model gets them late: what they are computed from is kept,
and looked at when they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property, partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from federation.aggregation.columns import columns_of_piece, read_rows, threads_for
from federation.aggregation.crew import Crew
from federation.aggregation.scores import RULE_WEIGHT, Scores, SiteScores
from federation.aggregation.scratch import Scratch
from federation.aggregation.tiles import Array, part_of
from federation.aggregation.watching import WatchedTiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from federation.aggregation.rule import Combines, RuleReport
    from federation.aggregation.tiles import Tile, TileSource
    from federation.names import SiteName

_KEPT_BYTES = 1 << 20
"""Of updates that are kept for late scores."""


class LateScores(Mapping["SiteName", Scores]):
    """Scores by site, computed when somebody first looks.

    Args:
        compute: called once.
    """

    def __init__(self, compute: Callable[[], dict[SiteName, Scores]]) -> None:
        self._compute = compute

    @cached_property
    def _found(self) -> dict[SiteName, Scores]:
        return self._compute()

    def __getitem__(self, site: SiteName) -> Scores:
        return self._found[site]

    def __iter__(self) -> Iterator[SiteName]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Scoring:
    """Watches one combination and says afterwards how each site's update lay to what came out.

    Args:
        byzantine: f of the Krum score.
        needs_krum: the Krum score is wanted however many sites there are.
        is_late: scores of a small model are computed when they are first looked at.
        threads: most threads that score behind a rule which does not show its tiles; None: one per core.
    """

    def __init__(
        self, *, byzantine: int = 0, needs_krum: bool = False, is_late: bool = False, threads: int | None = None
    ) -> None:
        self._found: SiteScores | None = None
        self._byzantine = byzantine
        self._needs_krum = needs_krum
        self._is_late = is_late
        self._threads = threads
        self._sites: Sequence[SiteName] = ()
        self._kept: list[tuple[Array, Array]] = []

    def watch(self, rule: Combines, source: TileSource) -> Iterator[tuple[Tile, Array]]:
        """Yield what a rule yields for a source, as it does.

        Args:
            rule: of the round.
            source: the updates.
        """
        if len(source.sites) < 2:
            yield from rule.combine(source)
            return
        found = self._found = self._scores_of(source.sites)
        if self._is_late and len(source.sites) * sum(tile.nbytes for tile in source.tiles) <= _KEPT_BYTES:
            for tile, values in rule.combine(source):
                self._kept.append((read_rows(source, tile, Scratch()), values.copy()))
                yield tile, values
            return
        watched = WatchedTiles(source, found.products, found.take)
        again = _Again(found, source, self._threads or threads_for(len(source.sites)))
        with again.crew:
            for count, (tile, values) in enumerate(rule.combine(watched), 1):
                if not watched.has_seen(count):
                    again.score(tile, values)
                yield tile, values
            again.finish()

    def take(self, sites: Sequence[SiteName], rows: Array, values: Array) -> None:
        """Take in a round whose model is one tile, instead of watching it.

        Args:
            sites: in name order.
            rows: (n, elements), each site's change; not written by anybody from now on.
            values: the combined elements, float64; likewise.
        """
        if len(sites) < 2:
            return
        if self._is_late and rows.nbytes <= _KEPT_BYTES:
            self._sites = sites
            self._kept.append((rows, values))
        else:
            self._found = self._scores_of(sites)
            self._found.add(rows, values)

    def finish(self, report: RuleReport | None = None) -> Mapping[SiteName, Scores]:
        """Return each site's scores, once every tile has passed; none where there were fewer than 2 updates.

        Args:
            report: what the rule says of the round; how much each site counted becomes a score of it.
        """
        return LateScores(lambda: self._finish(report)) if self._kept else self._finish(report)

    def _scores_of(self, sites: Sequence[SiteName]) -> SiteScores:
        return SiteScores(sites, byzantine=self._byzantine, needs_krum=self._needs_krum)

    def _finish(self, report: RuleReport | None) -> dict[SiteName, Scores]:
        if self._kept:
            if self._found is None:
                self._found = self._scores_of(self._sites)
            for rows, values in self._kept:
                self._found.add(rows, values)
            self._kept.clear()
        found = self._found.finish() if self._found is not None else {}
        weights = report.counted if report is not None else None
        for site, scores in found.items():
            if weights is not None and math.isfinite(weights.get(site, math.nan)):
                scores[RULE_WEIGHT] = weights[site]
        return found


class _Again:
    """Reads tiles once more behind a rule, and scores them.

    Attributes:
        crew: scores pieces; whoever makes an `_Again` ends it.
    """

    def __init__(self, found: SiteScores, source: TileSource, threads: int) -> None:
        self._found = found
        self._source = source
        self._step = columns_of_piece(len(source.sites))
        self._threads = max(min(threads, sum(-(-tile.elements // self._step) for tile in source.tiles)), 1)
        self.crew = Crew[Array](self._threads, "scores")
        self._scratches: SimpleQueue[Scratch] = SimpleQueue()
        for _ in range(self._threads):
            self._scratches.put(Scratch())

    def score(self, tile: Tile, values: Array) -> None:
        """Have a tile scored; `values` may be overwritten when this returns."""
        kept = values.copy()
        for start in range(0, tile.elements, self._step):
            piece = slice(start, start + self._step)
            self.crew.begin(partial(self._products, part_of(tile, piece), kept[piece]))
        while len(self.crew) > self._threads:
            self._found.take(self.crew.take())

    def finish(self) -> None:
        """Wait until everything is scored."""
        while len(self.crew):
            self._found.take(self.crew.take())

    def _products(self, piece: Tile, values: Array) -> Array:
        scratch = self._scratches.get()
        try:
            return self._found.products(read_rows(self._source, piece, scratch, room=1), values, scratch)
        finally:
            self._scratches.put(scratch)
