"""``federation simulate``: what it says of a run that was there before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from federation.client.command import app
from federation.client.exits import Exit

if TYPE_CHECKING:
    from pathlib import Path

EXPERIMENT = """
import numpy as np
from federation import Experiment, Plan


class Halves:
    def train(self, model, data, round):
        model["w"] /= 2
        return {"loss": float(model["w"][0])}

    def evaluate(self, model, data):
        return {"loss": float(model["w"][0])}


experiment = Experiment(name="halves", model={"w": np.ones(3)}, task=Halves(), shard="digits", plan=Plan(rounds=2),
                        data="federation.data.samples:WholeDigits")
"""


def simulate(tmp_path: Path, code: str = EXPERIMENT, *arguments: str, exit_code: int = 0) -> str:
    folder = tmp_path / "halves"
    folder.mkdir(exist_ok=True)
    (folder / "experiment.py").write_text(code)
    arguments = ("simulate", str(folder), "--sites", "2", *(arguments or ("--out", str(tmp_path / "run"))))
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == exit_code, result.output
    return result.stderr


def test_a_run_that_has_ended_is_not_run_again_and_that_is_said(tmp_path: Path) -> None:
    assert "federation:" not in simulate(tmp_path)
    assert "run has ended already, and nothing was run; --fresh begins anew" in simulate(tmp_path)


def test_why_a_run_failed_is_told_to_its_author_with_the_traceback(tmp_path: Path) -> None:
    code = EXPERIMENT.replace('model["w"] /= 2', 'raise ValueError("the scanner is off")')
    told = simulate(tmp_path, code, "--set", "rounds=1", exit_code=Exit.EXPERIMENT_FAILED)
    assert "experiment.py" in told and "in train" in told
    *_, last = told.splitlines()
    assert "site-001 failed (ValueError); site-001 last raised ValueError: the scanner is off" in last
