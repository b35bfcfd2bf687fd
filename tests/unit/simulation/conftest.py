"""A small experiment on NumPy: fitting a mean at each site, fast enough to simulate hundreds of rounds."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import Experiment, Plan
from federation.data.shard import ArrayShard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.data.local import LocalData
    from federation.training.context import RoundContext

EXAMPLES = 60


class MeanTask:
    """Descend towards the mean of the site's samples, with noise, so that seeds and order matter.

    Args:
        spoils: ``site/round`` in which training raises, reports no number, ends its process, or goes far too far.
    """

    metric_names = ("loss",)

    def __init__(self, spoils: Mapping[str, str] | None = None) -> None:
        self.spoils = dict(spoils or {})

    def train(self, model: dict[str, Any], data: LocalData, round: RoundContext) -> dict[str, float]:
        kind = self.spoils.get(f"{round.site}/{round.number}", "")
        if kind.startswith("die"):
            # Dies once if a file is named, else every time.
            name = kind.partition(":")[2]
            if not name or not Path(name).exists():
                if name:
                    Path(name).touch()
                os._exit(9)
        if kind == "raise":
            raise RuntimeError("the scanner is off")
        noise = round.rng("noise")
        for samples, _ in data.batches(8, round.rng("shuffle")):
            step = samples.mean(axis=0) - model["w"] + 0.01 * noise.standard_normal(model["w"].shape)
            model["w"] += np.float32(round.learning_rate) * step.astype(np.float32)
        if kind == "far":
            model["w"] += 100
        model["seen"] += 1
        if kind == "nan":
            model["w"][0] = np.nan
            return {"loss": 0.0}
        return {"loss": float(np.square(data.train[0].mean(axis=0) - model["w"]).mean())}

    def evaluate(self, model: dict[str, Any], data: LocalData) -> dict[str, float]:
        return {"loss": float(np.square(data.validation[0].mean(axis=0) - model["w"]).mean())}


def whole() -> ArrayShard:
    """Return the whole dataset: three classes around three points."""
    rng = np.random.default_rng(5)
    targets = np.arange(EXAMPLES) % 3
    samples = (targets[:, None] + 0.1 * rng.standard_normal((EXAMPLES, 4))).astype(np.float32)
    return ArrayShard(train=(samples, targets), validation=(samples[:12], targets[:12]))


@pytest.fixture(name="make")
def _make() -> Callable[..., Experiment]:
    """Return what makes the experiment, with plan fields of one's own."""

    def make(*, spoils: Mapping[str, str] | None = None, local: tuple[str, ...] = (), **plan: Any) -> Experiment:
        values = {"rounds": 6, "learning_rate": 0.2, "seed": 3, "local": local, **plan}
        model = {"w": np.zeros(4, np.float32), "seen": np.zeros(1, np.int64), "own": np.ones(2, np.float32)}
        return Experiment(
            name="mean", model=model, task=MeanTask(spoils), shard="points", plan=Plan(**values), data=whole
        )

    return make


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
    """Return an experiment's folder, with a dataset of a class of its own and a module beside it."""
    folder = tmp_path / "line"
    folder.mkdir()
    (folder / "experiment.py").write_text(textwrap.dedent(EXPERIMENT))
    (folder / "steps.py").write_text("WIDTH = 4\n")
    return folder


@pytest.fixture(name="die_once")
def _die_once(source: Path) -> Callable[[Path], None]:
    """Return what makes the experiment in the folder end its process once, in its first gradient."""

    def change(flag: Path) -> None:
        code = f"""
            import os
            from pathlib import Path

            def die_once(method):
                def gradient(self, *args):
                    if not Path({str(flag)!r}).exists():
                        Path({str(flag)!r}).touch()
                        os._exit(9)
                    return method(self, *args)
                return gradient

            LeastSquares.gradient = die_once(LeastSquares.gradient)
        """
        script = source / "experiment.py"
        script.write_text(script.read_text() + textwrap.dedent(code))

    return change
