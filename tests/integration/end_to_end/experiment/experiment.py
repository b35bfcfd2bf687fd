"""A line fitted by gradient descent, that can be told to wait, to fail and to attack: ``settings.json`` says how.

Trainers talk with the test through named pipes in a folder that their shard's owner let them see: a line into ``said``
tells what begins, and opening the site's own pipe blocks until the test opens it too. So nobody polls or sleeps, and
what was trained is counted.
"""

import json
from pathlib import Path

import numpy as np

from federation import BestModel, Experiment, Plan
from federation.attacks import Sight, load_attack
from federation.tensors import DType

SETTINGS = json.loads((Path(__file__).parent / "settings.json").read_text())
DTYPE = DType(SETTINGS.get("dtype", "float32")).numpy
PLAN = Plan(**{"best": BestModel(metric="loss"), **SETTINGS["plan"]})


def model() -> dict[str, np.ndarray]:
    return {"weights": np.full(4, 0.125, DTYPE), "bias": np.zeros(1, DTYPE)}


def say(text: str) -> None:
    if SETTINGS.get("gate"):
        with open(Path(SETTINGS["gate"]) / "said", "w") as pipe:
            pipe.write(text + "\n")


def wait(site: str) -> None:
    if SETTINGS.get("gate"):
        open(Path(SETTINGS["gate"]) / site).close()


def predict(model, samples):
    return samples @ model["weights"].astype(np.float32) + model["bias"].astype(np.float32)


class Line:
    """Least squares, with momentum if the plan lets it keep some."""

    def train(self, model, data, round):
        say(f"train {round.site} {round.number}")
        if round.number in SETTINGS.get("holds", {}).get(round.site, ()):
            wait(round.site)
        if round.site in SETTINGS.get("fails", ()):
            raise KeyError("patient 17 of " + round.site)
        before = {name: value.copy() for name, value in model.items()}
        momentum = round.optimizer_state.get("weights/momentum", np.zeros(4, np.float32))
        for samples, targets in data.batches(8, round.rng("shuffle")):
            error = predict(model, samples) - targets
            momentum = self.beta * momentum + samples.T @ error / np.float32(len(targets))
            weights = model["weights"].astype(np.float32) - np.float32(round.learning_rate) * momentum
            bias = model["bias"].astype(np.float32) - np.float32(round.learning_rate) * error.mean()
            model["weights"][...] = weights.astype(DTYPE)
            model["bias"][...] = bias.astype(DTYPE)
        if round.site in SETTINGS.get("attacks", {}):
            attack(SETTINGS["attacks"][round.site], model, before, round)
        if PLAN.optimizer_state != "reset":
            round.optimizer_state["weights/momentum"] = momentum.astype(np.float32)
        return {"loss": loss(model, *data.train)}

    def evaluate(self, model, data):
        return {"loss": loss(model, *data.validation)}

    def optimizer_tensors(self, model, learning_rate):
        return {"weights/momentum": np.zeros(4, np.float32)}

    @property
    def beta(self):
        return np.float32(0.0 if PLAN.optimizer_state == "reset" else 0.5)


def attack(spec, model, before, round):
    """Leave in the model what an attack makes of what was learnt."""
    own = np.concatenate([np.ravel(model[name] - before[name]) for name in model]).astype(np.float64)[None]
    sight = Sight(own=own, honest=own, total=PLAN.sites, round=round.number, rng=round.rng("attack"))
    sent = load_attack(spec).updates(sight)[0]
    for name, value in model.items():
        change, sent = sent[: value.size], sent[value.size :]
        value[...] = before[name] + change.reshape(value.shape).astype(value.dtype)


def loss(model, samples, targets):
    return float(np.mean(np.square(predict(model, samples) - targets)))


experiment = Experiment(
    name=SETTINGS.get("name", "line"),
    model=model,
    task=Line(),
    shard=SETTINGS.get("shard", "rows"),
    plan=PLAN,
    metrics=("loss",),
    sample_shape=(4,),
)
