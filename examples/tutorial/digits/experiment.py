"""Steps 2 and 3: the same network and loss, said once, for simulated sites and for real ones."""

from torch import nn

from federation import BestModel, Experiment, Plan, SupervisedTask


def model() -> nn.Module:
    """Return the network of the centralised script."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


experiment = Experiment(
    name="tutorial",
    model=model,
    task=SupervisedTask(loss="cross_entropy", optimizer="sgd", batch_size=32, metrics=("accuracy",)),
    shard="digits",
    data="federation.data.samples:WholeDigits",
    sample_shape=(1, 8, 8),
    target_shape=(),
    plan=Plan(
        rounds=20,
        sites=3,
        minimum_sites=3,
        local_epochs=1,
        learning_rate=0.1,
        best=BestModel(metric="accuracy", direction="max"),
    ),
)
