"""Scores taken in passing, at once or when they are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.mean import WeightedMean
from federation.aggregation.median import Median
from federation.aggregation.rule import RuleContext, RuleReport
from federation.aggregation.scores import RULE_WEIGHT
from federation.aggregation.tiles import ArrayTiles
from federation.aggregation.watching import WatchedTiles
from federation.names import SiteName
from federation.storage import scoring
from federation.storage.scoring import LateScores, Scoring
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from federation.aggregation.rule import AggregationRule
    from federation.aggregation.tiles import Array, Tile, TileSource

SITES = [SiteName(name) for name in "abcd"]
MEAN = WeightedMean()


class OfThreads:
    """A rule told how many threads to use."""

    def __init__(self, rule: AggregationRule, threads: int | None) -> None:
        self._rule = rule
        self._threads = threads

    def combine(self, source: TileSource) -> Iterator[tuple[Tile, Array]]:
        yield from self._rule.combine(source, RuleContext(threads=self._threads))


def scores(
    *,
    rule: AggregationRule = MEAN,
    is_late: bool = False,
    threads: int | None = None,
    elements: int = 50,
    tile_elements: int = 20,
) -> object:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(elements,))])
    draw = np.random.default_rng(3)
    buffers: dict[SiteName, bytes | bytearray] = {
        site: bytearray(draw.normal(size=elements).astype("<f4").tobytes()) for site in SITES
    }
    source = ArrayTiles(schema, buffers, dict.fromkeys(SITES, 1.0), tile_elements=tile_elements)
    watching = Scoring(is_late=is_late, threads=threads)
    for _ in watching.watch(OfThreads(rule, threads), source):
        pass
    found = watching.finish()
    for buffer in buffers.values():
        buffer[:] = bytes(len(buffer))  # the next round's updates go to the same places
    assert isinstance(found, LateScores) is (is_late and elements * 16 <= scoring._KEPT_BYTES)
    return dict(found)


def test_late_scores_are_the_same_though_the_updates_are_gone() -> None:
    late = scores(is_late=True)
    assert late == scores(is_late=False)
    assert isinstance(late, dict) and sorted(late) == SITES


def test_updates_too_large_to_be_kept_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_KEPT_BYTES", 100)
    assert scores(is_late=True) == scores(is_late=False)


def test_scores_of_the_mean_are_the_same_whoever_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"elements": 50_000, "tile_elements": 7000}
    expected = scores(threads=1, **sizes)
    assert scores(threads=2, **sizes) == scores(threads=4, **sizes) == scores(**sizes) == expected
    monkeypatch.setattr(WatchedTiles, "has_seen", lambda self, tiles: False)
    monkeypatch.setattr(WatchedTiles, "saw", lambda self, found: None)  # read again, as behind other rules
    for threads in (1, 2, 4):
        assert scores(threads=threads, **sizes) == expected


def test_scores_behind_a_rule_that_reads_as_it_likes_are_the_same_for_any_number_of_threads() -> None:
    sizes = {"elements": 50_000, "tile_elements": 7000}
    expected = scores(rule=Median(), threads=1, **sizes)
    assert expected != scores(threads=1, **sizes)
    for threads in (2, 4, None):
        assert scores(rule=Median(), threads=threads, **sizes) == expected


def test_how_much_a_site_counted_is_its_trust_where_the_rule_says_that() -> None:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(4,))])
    draw = np.random.default_rng(3)
    buffers: dict[SiteName, bytes | bytearray] = {site: draw.normal(size=4).astype("<f4").tobytes() for site in SITES}
    source = ArrayTiles(schema, buffers, dict.fromkeys(SITES, 1.0))
    trust = dict(zip(SITES, (1.0, 0.5, 0.25, 0.0), strict=True))
    weights = dict.fromkeys(SITES, 7.0)
    for report, expected in (
        (RuleReport(weights=weights, note="", trust=trust), trust),
        (RuleReport(weights=weights, note=""), weights),
    ):
        watching = Scoring()
        for _ in watching.watch(WeightedMean(), source):
            pass
        assert {site: row[RULE_WEIGHT] for site, row in watching.finish(report).items()} == expected
