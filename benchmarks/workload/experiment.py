"""A workload that trains nothing: every round each site adds a random block of its own, scaled by the round.

The model has as many float32 values as the environment of the submission says; trainers rebuild it from the file
``parameters.txt`` beside this one, which the benchmark writes into its copy of the folder.
"""

from pathlib import Path

import numpy as np

from federation import Experiment, Plan

HERE = Path(__file__).parent
PARAMETERS = int((HERE / "parameters.txt").read_text())
PLAN = Plan.model_validate_json((HERE / "plan.json").read_text())


def model() -> dict[str, np.ndarray]:
    """Return the model: one flat tensor of zeros."""
    return {"weights": np.zeros(PARAMETERS, dtype=np.float32)}


class RandomWalk:
    """Adds ``scale(round) × block(site)``; the block is drawn once, so a round costs one pass over the model."""

    def __init__(self) -> None:
        self.block: np.ndarray | None = None

    def train(self, model, data, round):
        """Change the model in place, differently by site and round."""
        if self.block is None:
            seed = int.from_bytes(round.site.encode()[-4:], "little")
            self.block = np.random.Generator(np.random.SFC64(seed)).random(PARAMETERS, dtype=np.float32)
        scale = np.float32(1e-3 * (1 + round.number % 7))
        step = 1 << 18
        for start in range(0, PARAMETERS, step):  # blocks that stay in the cache: no temporary of the model's size
            model["weights"][start : start + step] += scale * self.block[start : start + step]
        return {"loss": 1.0 / round.number}

    def evaluate(self, model, data):
        """Return a figure of the model without reading all of it."""
        return {"loss": float(model["weights"][0])}


experiment = Experiment(
    name="benchmark",
    model=model,
    task=RandomWalk(),
    shard="benchmark",
    plan=PLAN,
    metrics=("loss",),
)
