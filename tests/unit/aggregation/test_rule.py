"""Rules are found by name, ours first, then what the operator installed; plans they cannot stand are refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from federation.aggregation import registry
from federation.aggregation.mean import WeightedMean
from federation.aggregation.registry import (
    ENTRY_POINT_GROUP,
    PRE_AGGREGATIONS,
    RULES,
    check,
    load_aggregation,
    load_pre_aggregation,
    load_rule,
    rule_names,
)
from federation.aggregation.trimmed_mean import TrimmedMean
from federation.errors import ConfigurationError, PlanError
from federation.plan import Plan


def install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    entries = EntryPoints([EntryPoint(name=name, value=value, group=ENTRY_POINT_GROUP)])
    monkeypatch.setattr(registry, "entry_points", lambda **chosen: entries.select(**chosen))


def test_the_mean_is_built_in() -> None:
    assert isinstance(load_rule("mean"), WeightedMean)
    assert "mean" in rule_names()


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(PlanError, match="did you mean 'mean'"):
        load_rule("maen")


def test_an_installed_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "my_mean", "federation.aggregation.mean:WeightedMean")
    assert isinstance(load_rule("my_mean"), WeightedMean)
    assert rule_names() == sorted([*RULES, "my_mean"])


def test_an_installed_rule_cannot_take_a_name_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "mean", "nowhere:Nothing")
    assert isinstance(load_rule("mean"), WeightedMean)


def test_an_installed_rule_that_cannot_be_loaded_is_the_operators_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "broken", "nowhere:Nothing")
    with pytest.raises(ConfigurationError, match=r"'broken'.*nowhere:Nothing"):
        load_rule("broken")


def test_an_installed_object_that_is_no_rule_is_the_operators_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "odd", "federation.plan:Plan")
    with pytest.raises(ConfigurationError, match="not a subclass of AggregationRule"):
        load_rule("odd")


def test_options_that_a_rule_does_not_have_are_named() -> None:
    with pytest.raises(PlanError, match=r"rule_options of rule 'multi_krum' are not valid: k: .*its options are: m"):
        load_rule("multi_krum", k=3)
    with pytest.raises(PlanError, match=r"m: Input should be greater than or equal to 1 \(got '0'\)"):
        load_rule("multi_krum", m=0)
    assert load_rule("multi_krum", m=3).options() == {"m": 3}


def test_pre_aggregations_are_read_as_choices() -> None:
    assert load_pre_aggregation("bucketing").vectors(9) == 5
    assert load_pre_aggregation("bucketing:4").vectors(9) == 3
    for choice, message in {
        "nm": "did you mean 'nnm'",
        "nnm:2": "'nnm' has no options",
        "bucketing:1": "greater than or equal to 2; write it as 'bucketing:SIZE'",
        "bucketing:x": "write it as 'bucketing:SIZE'",
        "clipping": "radius: Field required; write it as 'clipping:RADIUS'",
        "clipping:0": "greater than 0",
        "clipping:inf": "finite",
    }.items():
        with pytest.raises(PlanError, match=message):
            load_pre_aggregation(choice)


def test_a_plan_says_what_is_done_to_the_updates_of_a_round() -> None:
    plan = Plan(rule="trimmed_mean", byzantine=2, pre_aggregation=("arc", "nnm"))
    aggregation = load_aggregation(plan)
    assert isinstance(aggregation.rule, TrimmedMean)
    assert [step.name for step in aggregation.before] == ["arc", "nnm"]
    assert check(plan, 5) == aggregation


@pytest.mark.parametrize(
    ("options", "fewest", "message"),
    [
        ({"rule": "trimmed_mean", "byzantine": 2}, 4, r"2f < n: it needs 5 updates or more and has 4.*raise quorum"),
        ({"rule": "krum", "byzantine": 2}, 6, "it needs 7 updates or more and has 6"),
        ({"rule": "krum", "byzantine": 2, "pre_aggregation": ("bucketing:2",)}, 12, "12 updates, 6 after pre_agg"),
        ({"rule": "krum"}, 20, "'krum' must be told how many hostile sites to stand"),
        ({"pre_aggregation": ("arc",)}, 20, "'arc' must be told"),
        (
            {"pre_aggregation": ("arc",), "byzantine": 2, "weighting": "uniform"},
            4,
            "pre_aggregation 'arc' stands byzantine = 2 only where",
        ),
        ({"rule": "mean", "byzantine": 1}, 20, "the mean stands no hostile site"),
        ({"rule": "multi_krum", "byzantine": 1, "rule_options": {"m": 9}}, 8, "m is 9, more than the n - f = 7"),
        ({"rule": "smea", "byzantine": 5, "sites": 30, "sample": 30}, 11, "5 of 30 .* in 142506 ways: use caf"),
        ({"rule": "smea", "byzantine": 2, "sites": 10}, 9, "every site that joins is asked: set sample, such as 10,"),
        ({"rule": "mda", "byzantine": 13}, 27, "takes byzantine up to 12"),
        ({"rule": "monna", "byzantine": 1}, 9, "trusted: Field required"),
        ({"rule": "monna", "byzantine": 1, "rule_options": {"trusted": "Not A Site!"}}, 9, "trusted: .*'Not A Site!'"),
        ({"rule": "fltrust", "rule_options": {"trusted": "../a"}}, 9, "trusted: .*lower-case letters"),
        (
            {"rule": "fltrust", "rule_options": {"trusted": "a"}, "pre_aggregation": ("bucketing:2",)},
            9,
            "trusts site 'a', whose vector is none of its own after pre_aggregation 'bucketing'",
        ),
    ],
)
def test_a_plan_that_its_rule_cannot_stand_is_refused_with_what_to_change(
    options: dict[str, Any], fewest: int, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        check(Plan(**options), fewest)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"rule": "smea", "byzantine": 5, "sites": 30, "sample": 30}, "use caf, or sample fewer sites"),
        ({"rule": "mda", "byzantine": 13}, "use multi_krum with pre_aggregation nnm"),
        ({"rule": "fltrust", "rule_options": {"trusted": "a"}, "pre_aggregation": ("bucketing:2",)}, "leave that out"),
    ],
)
def test_who_would_not_be_helped_by_more_updates_is_not_told_to_raise_the_quorum(
    options: dict[str, Any], advice: str
) -> None:
    with pytest.raises(PlanError, match=f"{advice}$"):
        check(Plan(**options), 30)


def test_a_rule_that_takes_only_so_many_is_accepted_with_a_sample() -> None:
    check(Plan(rule="smea", byzantine=2, sites=10, sample=10), 9)


def test_the_median_needs_no_number_of_hostile_sites() -> None:
    check(Plan(rule="median"), 1)
    check(Plan(rule="median", byzantine=2), 5)


@pytest.mark.parametrize("catalogue", [RULES, PRE_AGGREGATIONS])
def test_what_is_built_in_is_listed_under_the_name_it_says(catalogue):
    assert {name: kind.name for name, kind in catalogue.items()} == {name: name for name in catalogue}
