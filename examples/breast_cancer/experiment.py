"""Three hospitals learn to tell malignant from benign tumours without pooling their patients."""

from torch import nn

from federation import BestModel, Experiment, Plan, SupervisedTask


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
        rounds=30,
        sites=3,
        minimum_sites=2,
        local_epochs=2,
        learning_rate=0.05,
        best=BestModel(metric="loss", direction="min"),
    ),
)
