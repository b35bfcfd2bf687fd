"""The profile adds up spans by component, and traces one round."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from federation.simulation.profiling import TRACED_ROUND, Profile

if TYPE_CHECKING:
    from pathlib import Path


def test_components_count_calls_and_stay_within_the_whole() -> None:
    profile = Profile()
    for _ in range(3):
        with profile.span("train"):
            sum(range(1000))
    with pytest.raises(ValueError, match="x"), profile.span("combine"):
        raise ValueError("x")
    profile.finish()
    assert {name: found.calls for name, found in profile.components.items()} == {"train": 3, "combine": 1}
    assert 0 < profile.components["train"].seconds < profile.seconds
    head, rows = profile.table()
    assert [row[0] for row in rows][-1] == "whole run" and all(len(row) == len(head) for row in rows)


def test_without_a_file_no_round_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.profiler", None)  # whoever imports it fails
    profile = Profile()
    for number in range(1, TRACED_ROUND + 2):
        profile.round_done(number)
    profile.finish()


@pytest.mark.needs_torch
def test_the_second_round_is_traced(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    profile = Profile(tmp_path / "traces" / "round-2.json")
    for number in range(1, TRACED_ROUND + 2):
        torch.ones(number, 7).sum()
        profile.round_done(number)
    events = json.loads((tmp_path / "traces" / "round-2.json").read_text())["traceEvents"]
    shapes = [event["args"]["Input Dims"] for event in events if event.get("name") == "aten::sum"]
    assert shapes and all(shape[0] == [TRACED_ROUND, 7] for shape in shapes)
