"""Trackers are found by name, ours first, then plugins."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from federation.errors import ConfigurationError
from federation.tracking import load_tracker, registry, tracker_names
from federation.tracking.csv_file import CsvTracker


class _Silent:
    def __init__(self, where: str) -> None:
        self.where = where

    def start(self, run: object) -> None: ...
    def round(self, record: object) -> None: ...
    def end(self, outcome: str) -> None: ...


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EntryPoints(
        EntryPoint(name, f"{__name__}:{value}", registry.GROUP) for name, value in
        (("silent", "_Silent"), ("csv", "_Silent"), ("broken", "list"))
    )  # fmt: skip
    values = {"_Silent": _Silent, "list": lambda where: []}
    monkeypatch.setattr(EntryPoint, "load", lambda entry: values[entry.value.partition(":")[2]])
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


def test_ours_are_there() -> None:
    assert {"csv", "mlflow", "tensorboard", "wandb"} <= set(tracker_names())


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'tensorboard'"):
        load_tracker("tensorbord:x")


def test_a_plugin_is_found_and_cannot_take_one_of_our_names(plugins: None) -> None:
    silent = load_tracker("silent:here:there")
    assert isinstance(silent, _Silent) and silent.where == "here:there"
    assert isinstance(load_tracker("csv"), CsvTracker)
    assert "silent" in tracker_names()


def test_a_plugin_that_gives_no_tracker_is_refused(plugins: None) -> None:
    with pytest.raises(ConfigurationError, match="gives a list, which is no Tracker"):
        load_tracker("broken")
