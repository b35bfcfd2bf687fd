"""A tiny network with batch norm: a torch model with float buffers and an integer counter."""

import json
from pathlib import Path

from torch import nn

from federation import BestModel, Experiment, Plan, SupervisedTask

SETTINGS = json.loads((Path(__file__).parent / "settings.json").read_text())


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


experiment = Experiment(
    name="batch-norm",
    model=network,
    task=SupervisedTask(loss="cross_entropy", optimizer="sgd", batch_size=8, metrics=("accuracy",)),
    shard="classes",
    plan=Plan(**{"best": BestModel(metric="loss"), **SETTINGS["plan"]}),
    sample_shape=(4,),
)
