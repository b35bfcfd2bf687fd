"""Three hospitals learn to tell malignant from benign tumours without pooling their patients.

This is what `federation quickstart` submits; ``rounds.txt`` beside this file, if it is there, sets the rounds.
"""

from pathlib import Path

from torch import nn

from federation import BestModel, Experiment, Plan, SupervisedTask

_ROUNDS = Path(__file__).with_name("rounds.txt")


def model() -> nn.Module:
    """Return a small network: 30 measures of cell nuclei in, benign or malignant out."""
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


experiment = Experiment(
    name="breast-cancer",
    model=model,
    task=SupervisedTask(
        loss="cross_entropy",
        optimizer="sgd",
        optimizer_options={"momentum": 0.9},
        batch_size=16,
        metrics=("accuracy",),
    ),
    shard="breast-cancer",
    sample_shape=(30,),
    target_shape=(),
    plan=Plan(
        rounds=int(_ROUNDS.read_text()) if _ROUNDS.exists() else 30,
        sites=3,
        minimum_sites=2,
        local_epochs=2,
        learning_rate=0.05,
        best=BestModel(metric="loss", direction="min"),
    ),
)
