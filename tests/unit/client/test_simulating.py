"""``federation simulate``: what it says of a run that was there before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from federation.client.command import app

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


def simulate(tmp_path: Path) -> str:
    folder = tmp_path / "halves"
    folder.mkdir(exist_ok=True)
    (folder / "experiment.py").write_text(EXPERIMENT)
    arguments = ["simulate", str(folder), "--sites", "2", "--out", str(tmp_path / "run")]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stderr


def test_a_run_that_has_ended_is_not_run_again_and_that_is_said(tmp_path: Path) -> None:
    assert "federation:" not in simulate(tmp_path)
    assert "run has ended already, and nothing was run; --fresh begins anew" in simulate(tmp_path)
