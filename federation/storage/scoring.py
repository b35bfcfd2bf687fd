"""Scores of the updates of a round, taken in passing: beside the combination, from tiles that were just read.

The rule's results pass through `Scoring.watch` as they come. While the rule works on the next tile, another thread adds
the one before to the scores: with two cores the pass costs little of a round's time. A rule that goes through its tiles
once is given them by that very thread (`federation.aggregation.ahead`). Behind any other rule, and for many sites, the
thread reads them once more, from the page cache; payloads that only one reader at a time may decode are then read
between the rule's steps. A model of a few tiles is not worth a thread. Sums run in tile order in one thread: the same
bytes every time.

Who has better to do than to wait for the scores of a small model gets them late: what they are computed from is kept,
and looked at when they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.ahead import TilesAhead, can_read_ahead
from federation.aggregation.scores import RULE_WEIGHT, Scores, SiteScores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from federation.aggregation.rule import RuleReport
    from federation.aggregation.tiles import Array, Tile, TileSource
    from federation.names import SiteName

_FEW_TILES = 4
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
        is_shared: the source may be read by two threads at once.
        is_late: scores of a small model are computed when they are first looked at.
    """

    def __init__(
        self, *, byzantine: int = 0, needs_krum: bool = False, is_shared: bool = False, is_late: bool = False
    ) -> None:
        self._found: SiteScores | None = None
        self._ahead: TilesAhead | None = None
        self._pending: Future[None] | None = None
        self._byzantine = byzantine
        self._needs_krum = needs_krum
        self._is_shared = is_shared
        self._is_late = is_late
        self._kept: list[tuple[Array, Array]] = []
        self._raw = np.empty(0, dtype=np.uint8)

    def ahead(self, source: TileSource) -> TileSource:
        """Return what the rule is to be given in place of a source, which is then watched."""
        if len(source.sites) < 2 or len(source.tiles) <= _FEW_TILES or not can_read_ahead(source):
            return source
        self._ahead = TilesAhead(source, self._add)
        return self._ahead

    def watch(self, source: TileSource, results: Iterator[tuple[Tile, Array]]) -> Iterator[tuple[Tile, Array]]:
        """Yield what a rule yields for a source, as it does.

        Args:
            source: the updates; what the rule was given, or what that reads.
            results: every tile of the source in order, with its combined elements.
        """
        if len(source.sites) < 2:
            yield from results
            return
        found = SiteScores(source.sites, byzantine=self._byzantine, needs_krum=self._needs_krum)
        self._found = found
        if len(source.tiles) > _FEW_TILES:
            yield from self._beside(found, source, results)
            return
        is_late = self._is_late and len(source.sites) * sum(tile.nbytes for tile in source.tiles) <= _KEPT_BYTES
        for tile, values in results:
            if is_late:
                self._kept.append((self._read(source, tile).copy(), values.copy()))
            else:
                found.add(self._read(source, tile), values)
            yield tile, values

    def take(self, sites: Sequence[SiteName], rows: Array, values: Array) -> None:
        """Take in a round whose model is one tile, instead of watching it.

        Args:
            sites: in name order.
            rows: (n, elements), each site's change; not written by anybody from now on.
            values: the combined elements, float64; likewise.
        """
        if len(sites) < 2:
            return
        self._found = SiteScores(sites, byzantine=self._byzantine, needs_krum=self._needs_krum)
        if self._is_late and rows.nbytes <= _KEPT_BYTES:
            self._kept.append((rows, values))
        else:
            self._found.add(rows, values)

    def finish(self, report: RuleReport | None = None) -> Mapping[SiteName, Scores]:
        """Return each site's scores, once every tile has passed; none where there were fewer than 2 updates.

        Args:
            report: what the rule says of the round; how much each site counted becomes a score of it.
        """
        return LateScores(lambda: self._finish(report)) if self._kept else self._finish(report)

    def _finish(self, report: RuleReport | None) -> dict[SiteName, Scores]:
        if self._pending is not None:
            self._pending.result()
        if self._found is not None:
            for rows, values in self._kept:
                self._found.add(rows, values)
            self._kept.clear()
        found = self._found.finish() if self._found is not None else {}
        weights = report.counted if report is not None else None
        for site, scores in found.items():
            if weights is not None and math.isfinite(weights.get(site, math.nan)):
                scores[RULE_WEIGHT] = weights[site]
        return found

    def _beside(
        self, found: SiteScores, source: TileSource, results: Iterator[tuple[Tile, Array]]
    ) -> Iterator[tuple[Tile, Array]]:
        def add(tile: Tile, values: Array) -> None:
            found.add(self._read(source, tile), values)

        with ExitStack() as stack:
            worker = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="scores"))
            ahead = stack.enter_context(self._ahead) if self._ahead is not None else None
            for tile, values in results:
                if ahead is None or not ahead.looked_at(values):
                    if self._pending is not None:
                        self._pending.result()
                    kept = values.copy()  # the rule overwrites it while we are at work
                    if self._is_shared:
                        self._pending = worker.submit(add, tile, kept)
                    else:
                        self._pending = worker.submit(found.add, self._read(source, tile), kept)
                yield tile, values
            if ahead is not None:
                ahead.finish()

    def _add(self, rows: Array, values: Array) -> None:
        assert self._found is not None  # noqa: S101 - results are watched before they are looked at
        self._found.add(rows, values)

    def _read(self, source: TileSource, tile: Tile) -> Array:
        """Return every site's elements of a tile, valid until the next call."""
        sites = len(source.sites)
        if self._raw.size < sites * tile.nbytes:
            self._raw = np.empty(sites * tile.nbytes, dtype=np.uint8)
        rows: Array = self._raw[: sites * tile.nbytes].view(tile.dtype.numpy).reshape(sites, tile.elements)
        for site in range(sites):
            source.read(site, tile, rows[site])
        return rows
