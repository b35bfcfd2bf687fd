"""Scores taken in passing, at once or when they are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.mean import WeightedMean
from federation.aggregation.rule import RuleReport
from federation.aggregation.scores import RULE_WEIGHT
from federation.aggregation.tiles import ArrayTiles
from federation.names import SiteName
from federation.storage import scoring
from federation.storage.scoring import LateScores, Scoring
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    import pytest

SITES = [SiteName(name) for name in "abcd"]


def scores(
    *,
    is_late: bool = False,
    is_shared: bool = False,
    is_ahead: bool = False,
    elements: int = 50,
    tile_elements: int = 20,
) -> object:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(elements,))])
    draw = np.random.default_rng(3)
    buffers: dict[SiteName, bytes | bytearray] = {
        site: bytearray(draw.normal(size=elements).astype("<f4").tobytes()) for site in SITES
    }
    source = ArrayTiles(schema, buffers, dict.fromkeys(SITES, 1.0), tile_elements=tile_elements)
    watching = Scoring(is_late=is_late, is_shared=is_shared)
    for _ in watching.watch(source, WeightedMean().combine(watching.ahead(source) if is_ahead else source)):
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


def test_scores_are_the_same_whoever_reads_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"elements": 5000, "tile_elements": 700}
    monkeypatch.setattr(scoring, "_FEW_TILES", 100)
    expected = scores(**sizes)
    monkeypatch.undo()
    assert scores(**sizes) == scores(is_shared=True, **sizes) == scores(is_ahead=True, **sizes) == expected


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
        for _ in watching.watch(source, WeightedMean().combine(source)):
            pass
        assert {site: row[RULE_WEIGHT] for site, row in watching.finish(report).items()} == expected
