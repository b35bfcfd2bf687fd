"""A workload that trains nothing: every round each site adds random numbers of its own to the whole model.

What is measured is a round's way, so this costs as little as it can: one pass over the model, in place. The benchmark
writes ``parameters.txt`` (float32 values of the model) and ``plan.json`` into its copy of this folder.
"""

from pathlib import Path

import numpy as np

from federation import Experiment, Plan

HERE = Path(__file__).parent
PARAMETERS = int((HERE / "parameters.txt").read_text())
PLAN = Plan.model_validate_json((HERE / "plan.json").read_text())
BLOCK = min(PARAMETERS, 1 << 17)


def model() -> dict[str, np.ndarray]:
    """Return the model: one flat tensor of zeros."""
    return {"weights": np.zeros(PARAMETERS, dtype=np.float32)}


class RandomWalk:
    """Adds ``scale(round) × numbers(site)``, begun at a random place of the numbers, to each block of the model.

    The numbers are drawn once and stay in a core's cache, so a round reads and writes the model and nothing else. No
    two rounds and no two sites add the same.
    """

    def __init__(self) -> None:
        self.numbers: np.ndarray | None = None

    def train(self, model, data, round):
        """Change the model in place, differently by site and round."""
        if self.numbers is None:
            seed = int.from_bytes(round.site.encode()[-4:], "little")
            self.numbers = np.random.Generator(np.random.SFC64(seed)).random(2 * BLOCK, dtype=np.float32)
        rng = round.rng("update")
        turn, scale = int(rng.integers(BLOCK)), np.float32(1e-3 * rng.random())
        change = scale * self.numbers[turn : turn + BLOCK]
        weights = model["weights"]
        for start in range(0, PARAMETERS, BLOCK):
            part = weights[start : start + BLOCK]
            np.add(part, change[: len(part)], out=part)
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
