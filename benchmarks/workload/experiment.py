"""A workload that trains nothing: every round each site adds a random block of its own, turned and scaled by the round.

The benchmark writes ``parameters.txt`` (float32 values of the model) and ``plan.json`` into its copy of this folder.
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
    """Adds ``scale(round) × block(site)``, begun at a random place of the block.

    The block is drawn once, so a round costs one pass over the model; no two rounds and no two sites add the same.
    """

    def __init__(self) -> None:
        self.block: np.ndarray | None = None

    def train(self, model, data, round):
        """Change the model in place, differently by site and round."""
        if self.block is None:
            seed = int.from_bytes(round.site.encode()[-4:], "little")
            self.block = np.random.Generator(np.random.SFC64(seed)).random(PARAMETERS, dtype=np.float32)
        rng = round.rng("update")
        turn, scale = int(rng.integers(PARAMETERS)), np.float32(1e-3 * rng.random())
        weights = model["weights"]
        _add(weights[: PARAMETERS - turn], self.block[turn:], scale)
        _add(weights[PARAMETERS - turn :], self.block[:turn], scale)
        return {"loss": 1.0 / round.number}

    def evaluate(self, model, data):
        """Return a figure of the model without reading all of it."""
        return {"loss": float(model["weights"][0])}


def _add(weights, block, scale):
    step = 1 << 18
    for start in range(0, len(weights), step):  # blocks that stay in the cache: no temporary of the model's size
        weights[start : start + step] += scale * block[start : start + step]


experiment = Experiment(
    name="benchmark",
    model=model,
    task=RandomWalk(),
    shard="benchmark",
    plan=PLAN,
    metrics=("loss",),
)
