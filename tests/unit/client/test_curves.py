"""Axes add up over rounds, seeds are averaged, and goals are met at the first round that is good enough."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import pytest

from federation.client.curves import AXES, Goal, along, available, curve, group_runs, reached
from federation.client.runs import read_run
from federation.errors import ConfigurationError

from .made_runs import make_run, record

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


def test_every_axis_adds_up_over_rounds(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", [0.5, 0.4]))
    expected = {"rounds": 1, "bits_up": 80, "bits_down": 160, "bits": 240, "seconds": 2, "oracle_calls": 50}
    assert {x: along(run, x) for x in AXES} == {x: [float(value), 2.0 * value] for x, value in expected.items()}


def test_simulated_seconds_stand_before_real_ones() -> None:
    assert AXES["seconds"](record(1, 0.5, simulated_seconds=7.0)) == 7.0


def test_an_unknown_axis_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="give one of rounds, bits_up"):
        along(read_run(make_run(tmp_path / "a", [0.5])), "time")


def test_seeds_are_averaged_with_their_deviation_and_a_round_not_measured_gives_no_point(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / f"{seed}", losses, seed=seed)) for seed, losses in
            enumerate(([0.5, None, 0.1, 0.05], [0.7, None, 0.3]))]  # fmt: skip
    (group,) = group_runs(runs)
    points = curve(group, x="bits_up", y="loss")
    assert [(point.round, point.x) for point in points] == [(1, 80.0), (3, 240.0)]
    assert [point.y for point in points] == pytest.approx([0.6, 0.2])
    assert points[0].spread == pytest.approx(statistics.stdev([0.5, 0.7]))


def test_on_a_logarithmic_axis_the_band_is_a_factor_and_stays_above_zero(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / f"{seed}", [loss], seed=seed)) for seed, loss in enumerate((1e-4, 1e-2, 1.0))]
    (point,) = curve(*group_runs(runs), x="rounds", y="loss")
    assert point.spread > point.y  # mean - deviation has no logarithm
    assert point.band(is_log=True) == pytest.approx((1e-4, 1e-2, 1.0))
    assert point.band(is_log=False) == (point.y - point.spread, point.y, point.y + point.spread)


def test_a_value_of_zero_has_no_place_on_a_logarithmic_axis(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / f"{seed}", [loss], seed=seed)) for seed, loss in enumerate((0.0, 1.0))]
    (point,) = curve(*group_runs(runs), x="rounds", y="loss")
    assert (point.geometric, point.factor) == (0.0, 1.0)


def test_runs_are_grouped_by_all_but_their_seed_and_labelled_by_what_differs(tmp_path: Path) -> None:
    plans = ({}, {"algorithm": "fedprox", "options": {"mu": 0.1}}, {"compression": "top_k:0.01"}, {"learning_rate": 1})
    runs = [read_run(make_run(tmp_path / f"{index}-{seed}", [0.5], seed=seed, plan=plan))
            for index, plan in enumerate(plans) for seed in (0, 1)]  # fmt: skip
    groups = group_runs(runs)
    assert [len(group.runs) for group in groups] == [2, 2, 2, 2]
    assert [group.label for group in groups] == [
        "fedavg learning_rate=None", "fedprox(mu=0.1) learning_rate=None",
        "fedavg top_k:0.01 learning_rate=None", "fedavg learning_rate=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "label"),
    [
        ({"attack": "ipm:2", "hostile": ["north"]}, "fedavg attack=ipm:2 hostile=north"),
        ({"data": "other:Whole"}, "fedavg data=other:Whole"),
        ({"conditions": {"script": "drop 0.2"}}, "fedavg script=drop 0.2"),
        ({"conditions": {"up": 1e3}}, "fedavg up=1000.0"),
        ({"conditions": {"code": "ab" * 32}}, "fedavg code=abababab"),
    ],
)
def test_what_ran_under_other_conditions_is_no_further_seed(tmp_path: Path, head: dict[str, Any], label: str) -> None:
    runs = [read_run(make_run(tmp_path / "0", [0.5])), read_run(make_run(tmp_path / "1", [0.5], seed=1, **head))]
    _, other = group_runs(runs)
    assert other.label == label and len(other.runs) == 1


def test_a_second_run_of_one_seed_is_no_further_seed(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name, [0.5])) for name in ("a", "b")]
    assert [(group.label, len(group.runs)) for group in group_runs(runs)] == [("fedavg (a)", 1), ("fedavg (b)", 1)]


def test_a_label_of_its_author_names_the_group(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name, [0.5], label="mine", plan={"rounds": rounds}))
            for name, rounds in (("a", 1), ("b", 2))]  # fmt: skip
    assert [(group.label, len(group.runs)) for group in group_runs(runs)] == [("mine", 2)]


@pytest.mark.parametrize(("text", "upwards"), [("accuracy=0.9", True), ("loss=0.1", False), ("train:loss<=0.1", False),
                                               ("loss>=0.1", True), ("gradient_norm=1e-9", False)])  # fmt: skip
def test_a_goal_knows_its_side(text: str, upwards: bool) -> None:
    assert Goal.parse(text).upwards is upwards


@pytest.mark.parametrize("text", ["accuracy", "accuracy=", "accuracy=high", "=1", "accuracy=nan", "a=1e999"])
def test_what_is_no_goal_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="give METRIC=VALUE"):
        Goal.parse(text)


def test_a_goal_is_reached_at_the_first_round_on_its_side(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", [0.5, None, 0.1, 0.2]))
    assert reached(run, Goal.parse("accuracy=0.9"), "bits") == 3 * 240
    assert reached(run, Goal.parse("loss<=0.01"), "bits") is None


def test_what_runs_measured_is_listed(tmp_path: Path) -> None:
    assert available([read_run(make_run(tmp_path / "a", [0.5]))]) == ["accuracy", "loss", "train:loss", "update_norm"]


def test_a_diverged_seed_gives_no_deviation_that_is_not_a_number(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / f"{seed}", [loss], seed=seed)) for seed, loss in enumerate((0.5, math.inf))]
    (point,) = curve(group_runs(runs)[0], x="rounds", y="loss")
    assert point.spread == 0.0
