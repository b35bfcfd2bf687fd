"""Settings and grids: what is read as what, in which order, and that a cell keeps its name."""

from __future__ import annotations

import pytest

from federation.client.grid import Cell, make_grid, parse_changes, parse_seeds, parse_setting, parse_values
from federation.errors import ConfigurationError


@pytest.mark.parametrize(("text", "expected"), [
    ("learning_rate=0.1", ("learning_rate", 0.1)), ("lr=1e-3", ("learning_rate", 0.001)),
    ("quorum=null", ("quorum", None)),
    ("algorithm=fedprox", ("algorithm", "fedprox")), ("options.mu=1", ("options.mu", 1)),
    ("compression=top_k:0.1", ("compression", "top_k:0.1")), ("error_feedback=true", ("error_feedback", True)),
])  # fmt: skip
def test_a_value_is_json_where_it_is_json_else_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["learning_rate", "=1", "a b=1", ""])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="give NAME=VALUE"):
        parse_setting(text)


def test_settings_are_changes_of_a_plan() -> None:
    assert parse_changes(["options.mu=1", "lr=0.3"]) == {"options.mu": 1, "learning_rate": 0.3}


def test_values_are_parted_by_commas_or_by_semicolons_where_they_hold_commas() -> None:
    assert parse_values("lr=1, 0.1") == ("learning_rate", ["1", "0.1"])
    assert parse_values("compression=dithering:8,2;identity") == ("compression", ["dithering:8,2", "identity"])
    with pytest.raises(ConfigurationError, match="there twice"):
        parse_values("lr=1,1")


def test_seeds_are_a_range_or_a_list() -> None:
    assert parse_seeds("0:3") == [0, 1, 2]
    assert parse_seeds("4,2") == [4, 2]
    for wrong in ("", "3:3", "1:2:3", "a", "-1", "1,1"):
        with pytest.raises(ConfigurationError, match="seeds are"):
            parse_seeds(wrong)


def test_the_grid_is_every_combination_with_seeds_fastest() -> None:
    cells = make_grid([("a", ["1", "2"]), ("b", ["x"])], [0, 1])
    assert [(cell.settings, cell.seed) for cell in cells] == [
        ((("a", a), ("b", "x")), seed) for a in ("1", "2") for seed in (0, 1)
    ]
    assert make_grid([]) == [Cell(settings=(), seed=None)]


def test_a_grid_is_refused_where_a_name_is_there_twice_or_it_is_too_large() -> None:
    with pytest.raises(ConfigurationError, match="a is set twice"):
        make_grid([("a", ["1"]), ("a", ["2"])])
    many = [str(number) for number in range(1000)]
    with pytest.raises(ConfigurationError, match="1000000 cells"):
        make_grid([("a", many), ("b", many)])


def test_a_cell_keeps_its_name_whatever_order_its_settings_came_in() -> None:
    one = Cell(settings=(("a", "1"), ("b", "2")), seed=0)
    other = Cell(settings=(("b", "2"), ("a", "1")), seed=0)
    assert one.digest("digits", ["--sites", "3"]) == other.digest("digits", ["--sites", "3"])
    assert one.digest("digits", []) != one.digest("other", []) != one.digest("digits", ["--sites", "3"])
    assert one.digest("digits", []) != Cell(settings=one.settings, seed=1).digest("digits", [])


def test_a_cell_as_arguments() -> None:
    assert Cell(settings=(("a", "1"),), seed=2).arguments() == ["--set", "a=1", "--seed", "2"]
