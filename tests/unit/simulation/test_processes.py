"""Spawned workers, as where a system cannot fork: they load the experiment themselves, and the bits are the same."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import Experiment, Plan
from federation.data.shard import ArrayShard
from federation.errors import PlanError
from federation.simulation import processes, simulate

if TYPE_CHECKING:
    from pathlib import Path

EXPERIMENT = """
    import numpy as np
    from federation import Experiment, Plan
    from federation.training.gradient_task import GradientTask
    from steps import WIDTH

    class LeastSquares(GradientTask):
        def gradient(self, model, samples, targets):
            error = samples @ model["w"] - targets
            return {"loss": float(error @ error) / (2 * len(error))}, {"w": samples.T @ error / len(error)}

    class Points:  # a dataset of the experiment's own, in what workers are sent
        def __init__(self, count):
            self.rng = np.random.default_rng(5)
            self.samples = self.rng.standard_normal((count, WIDTH))
            self.targets = self.samples @ np.arange(WIDTH) + 0.1 * self.rng.standard_normal(count)

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, place):
            return self.samples[place], self.targets[place]

    class Whole:
        train, validation = Points(60), Points(10)
        sample_shape, target_shape, description = (WIDTH,), (), "points on a line"

    experiment = Experiment(
        name="line", model=lambda: {"w": np.zeros(WIDTH)}, task=LeastSquares(batch_size=8), shard="points", data=Whole,
        plan=Plan(rounds=3, sites=4, algorithm="scaffold", learning_rate=0.05, seed=3),
    )
"""


@pytest.fixture(name="source")
def _source(tmp_path: Path) -> Path:
    folder = tmp_path / "line"
    folder.mkdir()
    (folder / "experiment.py").write_text(textwrap.dedent(EXPERIMENT))
    (folder / "steps.py").write_text("WIDTH = 4\n")
    return folder


def test_spawned_workers_give_the_same_bits_and_a_dead_one_is_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = simulate(source, sites=4)
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    script = (source / "experiment.py").read_text()
    dies = textwrap.dedent(f"""
        import os
        from pathlib import Path

        def die_once(method):
            def gradient(self, *args):
                if not Path({str(tmp_path / "died")!r}).exists():
                    Path({str(tmp_path / "died")!r}).touch()
                    os._exit(9)
                return method(self, *args)
            return gradient

        LeastSquares.gradient = die_once(LeastSquares.gradient)
    """)
    (source / "experiment.py").write_text(script + dies)
    together = simulate(source, sites=4, workers=2)
    assert (tmp_path / "died").exists()
    assert [record.model_digest for record in together.records] == [record.model_digest for record in alone.records]
    assert together.arrays["w"].tobytes() == alone.arrays["w"].tobytes()
    assert capfd.readouterr().err == ""


class Lines:
    metric_names = ("loss",)

    def train(self, model: Any, data: Any, round: Any) -> dict[str, float]:
        return {"loss": 0.0}

    evaluate = train


def test_an_experiment_that_cannot_be_sent_to_a_spawned_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    zeros = np.zeros((8, 2))
    shard = ArrayShard(train=(zeros, zeros[:, 0]), validation=(zeros, zeros[:, 0]))
    experiment = Experiment(name="no", model=lambda: {"w": np.zeros(2)}, task=Lines(), shard="points", plan=Plan())
    with pytest.raises(PlanError, match=r"cannot be sent to them: .*; give an experiment folder"):
        simulate(experiment, sites=2, data=shard, workers=2)
