from __future__ import annotations

import sys

import pytest

from federation.errors import PlanError
from federation.training.importing import load_experiment

GOOD = """
import numpy as np
from federation import Experiment, Plan
from size import SIZE

class Task:
    def train(self, model, data, round): return {"loss": 0.0}
    def evaluate(self, model, data): return {"loss": 0.0}

experiment = Experiment(name="trial", model={"w": np.zeros(SIZE)}, task=Task(), shard="patients")
"""


@pytest.fixture(autouse=True)
def _clean_up(monkeypatch):
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("_federation_experiment") or name == "size":
            del sys.modules[name]


def _folder(parent, name: str, code: str, size: str = "SIZE = 3"):
    folder = parent / name
    folder.mkdir()
    (folder / "experiment.py").write_text(code)
    (folder / "size.py").write_text(size)
    return folder


def test_modules_beside_the_experiment_can_be_imported(tmp_path) -> None:
    assert load_experiment(_folder(tmp_path, "a", GOOD)).model["w"].shape == (3,)


def test_two_experiments_may_have_modules_of_the_same_name(tmp_path) -> None:
    first = load_experiment(_folder(tmp_path, "a", GOOD))
    second = load_experiment(_folder(tmp_path, "b", GOOD, "SIZE = 5"))
    assert (first.model["w"].shape, second.model["w"].shape) == ((3,), (5,))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = 1\ndef f(:\n", r"experiment\.py, line 2: SyntaxError"),
        ("x = 1\n\nx / 0\n", r"experiment\.py, line 3: ZeroDivisionError"),
        ("import surely_not_installed\n", "line 1: ModuleNotFoundError: No module named 'surely_not_installed'"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit"),
        ("x = 1\n", "must define `experiment = Experiment"),
        ("experiment = 3\n", "it has a int"),
        ("from federation import Plan\nPlan(rounds=0)\n", "line 2: .*rounds"),
        ("from federation import Plan\nPlan(round=3)\n", "line 2: .*round"),
    ],
)
def test_what_is_no_experiment_is_a_plan_error_that_says_where(tmp_path, code, says) -> None:
    with pytest.raises(PlanError, match=says):
        load_experiment(_folder(tmp_path, "a", code))


def test_an_error_in_a_module_beside_it_names_that_module(tmp_path) -> None:
    with pytest.raises(PlanError, match=r"size\.py, line 2: SyntaxError"):
        load_experiment(_folder(tmp_path, "a", GOOD, "SIZE = 3\nx ="))
    with pytest.raises(PlanError, match=r"size\.py, line 2: KeyError"):
        load_experiment(_folder(tmp_path, "b", GOOD, "SIZE = 3\n{}['x']"))


def test_a_folder_that_failed_is_taken_off_the_path(tmp_path) -> None:
    folder = _folder(tmp_path, "a", "1 / 0")
    with pytest.raises(PlanError):
        load_experiment(folder)
    assert str(folder) not in sys.path


def test_a_folder_without_an_experiment_is_refused(tmp_path) -> None:
    with pytest.raises(PlanError, match=r"has no experiment\.py"):
        load_experiment(tmp_path)
