"""The profile adds up spans by component, and traces one round."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
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


def test_what_lies_in_no_span_has_a_row_and_a_span_inside_another_is_not_taken_off_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([0.0, 2.0, 3.0, 4.0, 7.0, 10.0])  # made; commit starts; record starts and ends; commit ends; finished
    clock = SimpleNamespace(perf_counter=lambda: next(now))
    monkeypatch.setattr("federation.simulation.profiling.time", clock)
    profile = Profile()
    with profile.span("commit"), profile.span("record"):
        pass
    profile.finish()
    shown = {row[0]: row[2] for row in profile.table()[1]}
    assert shown == {"commit": "5.000", "record": "1.000", "none of these": "5.000", "whole run": "10.000"}


def test_without_torch_there_is_a_table_and_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("federation.simulation.profiling.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch.profiler", None)  # whoever imports it fails
    profile = Profile(tmp_path / "trace.json")
    for number in range(1, TRACED_ROUND + 2):
        profile.round_done(number)
    profile.finish()
    assert profile.traced is None


def test_without_a_file_no_round_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.profiler", None)  # whoever imports it fails
    profile = Profile()
    for number in range(1, TRACED_ROUND + 2):
        profile.round_done(number)
    profile.finish()
    assert profile.traced is None


@pytest.mark.needs_torch
def test_the_second_round_is_traced_and_the_tracer_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    profile = Profile(tmp_path / "traces" / "round-2.json")
    for number in range(1, TRACED_ROUND + 2):
        torch.ones(number, 7).sum()
        profile.round_done(number)
    events = json.loads((tmp_path / "traces" / "round-2.json").read_text())["traceEvents"]
    shapes = [event["args"]["Input Dims"] for event in events if event.get("name") == "aten::sum"]
    assert shapes and all(shape[0] == [TRACED_ROUND, 7] for shape in shapes)
    assert capfd.readouterr() == ("", "")
