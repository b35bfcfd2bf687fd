"""Rules are found by name: ours first, then what the operator installed."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from federation.aggregation import rule
from federation.aggregation.mean import WeightedMean
from federation.aggregation.rule import ENTRY_POINT_GROUP, load_rule, rule_names
from federation.errors import ConfigurationError, PlanError


def install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    entries = EntryPoints([EntryPoint(name=name, value=value, group=ENTRY_POINT_GROUP)])
    monkeypatch.setattr(rule, "entry_points", lambda **chosen: entries.select(**chosen))


def test_the_mean_is_built_in() -> None:
    assert isinstance(load_rule("mean"), WeightedMean)
    assert "mean" in rule_names()


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(PlanError, match="did you mean 'mean'"):
        load_rule("maen")


def test_an_installed_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "my_mean", "federation.aggregation.mean:WeightedMean")
    assert isinstance(load_rule("my_mean"), WeightedMean)
    assert rule_names() == ["mean", "my_mean"]


def test_an_installed_rule_cannot_take_a_name_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "mean", "nowhere:Nothing")
    assert isinstance(load_rule("mean"), WeightedMean)


def test_an_installed_rule_that_cannot_be_loaded_is_the_operators_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "broken", "nowhere:Nothing")
    with pytest.raises(ConfigurationError, match=r"'broken'.*nowhere:Nothing"):
        load_rule("broken")
