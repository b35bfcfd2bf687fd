"""Charts: round ticks that cover the data, SVG that is well formed whatever the names and numbers are."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.client.charts import LARGEST, WIDTH, Line, line_chart, nice_ticks

_numbers = st.floats(min_value=-LARGEST, max_value=LARGEST, allow_subnormal=True)


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)  # noqa: S314 - our own text


def test_ticks_are_round_numbers_that_cover_the_range() -> None:
    assert nice_ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(3.0, 47.0) == pytest.approx([0.0, 10.0, 20.0, 30.0, 40.0, 50.0])


@given(_numbers, _numbers)
def test_ticks_cover_any_range_and_are_few(first: float, second: float) -> None:
    low, high = min(first, second), max(first, second)
    ticks = nice_ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high))
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 12


def test_nothing_to_draw_is_an_empty_string() -> None:
    assert line_chart("loss", []) == ""
    assert line_chart("loss", [Line(name="federation", points=[])]) == ""


def test_a_single_round_is_a_visible_dot() -> None:
    chart = parse(line_chart("loss", [Line(name="federation", points=[(1.0, 0.5)])]))
    assert len(chart.findall(".//circle")) == 1


def test_each_line_is_in_the_legend_and_has_its_points() -> None:
    lines = [Line(name=f"site-{index}", points=[(1.0, index), (2.0, index + 1.0)]) for index in range(12)]
    chart = parse(line_chart("loss", lines))
    assert [entry.text or "".join(entry.itertext()) for entry in chart.findall("./figcaption/span")] == [
        line.name for line in lines
    ]
    drawn = chart.findall(".//polyline")
    assert len(drawn) == 12
    assert len({(line.get("stroke"), line.get("stroke-dasharray")) for line in drawn}) == 12


def test_hostile_names_are_text_and_nothing_else() -> None:
    name = '<script>alert("1")</script>'
    chart = line_chart(name, [Line(name=name, points=[(1.0, 1.0)])], x_label=name)
    assert "<script" not in chart
    assert parse(chart).findall(".//script") == []
    assert name in "".join(parse(chart).itertext())


def test_values_that_are_not_finite_are_left_out() -> None:
    points = [(1.0, 1.0), (2.0, math.nan), (3.0, math.inf), (4.0, -math.inf), (5.0, 2.0)]
    chart = parse(line_chart("loss", [Line(name="federation", points=points)]))
    (line,) = chart.findall(".//polyline")
    assert len((line.get("points") or "").split()) == 2


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats()), min_size=1, max_size=20))
def test_any_history_gives_well_formed_svg_within_its_frame(points: list[tuple[int, float]]) -> None:
    ordered = sorted((float(x), y) for x, y in points)
    chart = line_chart("loss", [Line(name="federation", points=ordered)])
    if not chart:
        return
    for line in parse(chart).findall(".//polyline"):
        for pair in (line.get("points") or "").split():
            x, y = (float(part) for part in pair.split(","))
            assert -1 <= x <= 561 and -1 <= y <= 301


def test_a_band_is_drawn_behind_its_line_and_counts_for_the_axis() -> None:
    chart = line_chart("t", [Line(name="a", points=[(1, 1.0), (2, 1.0)], band=[(1, 0.0, 9.0), (2, 0.5, 1.5)])])
    assert chart.index("<polygon") < chart.index("<polyline")
    assert ">10</text>" in chart


def test_a_logarithmic_axis_shows_the_values_themselves_and_leaves_out_what_is_not_above_0() -> None:
    chart = line_chart("t", [Line(name="a", points=[(1, 1.0), (2, 0.0), (3, 1e-10)])], is_log=True)
    assert ">1e-10</text>" in chart and ">1</text>" in chart
    assert chart.split('points="')[1].split('"')[0].count(",") == 2


def test_the_last_tick_of_a_long_axis_is_not_cut_off() -> None:
    svg = line_chart("t", [Line(name="a", points=[(1e6, 1.0), (5.6e6, 2.0)])], x_label="bits")
    places = re.findall(r'<text x="([0-9.]+)" y="[0-9.]+" text-anchor="middle">([0-9.e+]+)</text>', svg)
    place, shown = places[-1]
    assert shown == "6e+06"
    assert float(place) + 4 * len(shown) <= WIDTH  # half of a character of 7 or 8 units to either side


def test_an_x_axis_of_seconds_has_ticks_between_whole_numbers() -> None:
    assert ">0.2</text>" in line_chart("t", [Line(name="a", points=[(0.1, 1.0), (0.4, 2.0)])], x_label="seconds")
