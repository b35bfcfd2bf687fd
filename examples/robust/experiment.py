"""Ten sites of which two may lie: updates are mixed with their nearest, then trimmed coordinate by coordinate."""

from torch import nn

from federation import BestModel, Experiment, Plan, SupervisedTask


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


experiment = Experiment(
    name="robust",
    model=model,
    task=SupervisedTask(loss="cross_entropy", optimizer="sgd", batch_size=32, metrics=("accuracy",)),
    shard="digits",
    data="federation.data.samples:WholeDigits",
    sample_shape=(1, 8, 8),
    target_shape=(),
    plan=Plan(
        rounds=30,
        sites=10,
        minimum_sites=8,
        quorum=8,
        local_epochs=1,
        learning_rate=0.3,
        rule="trimmed_mean",
        byzantine=2,
        pre_aggregation=("nnm",),
        best=BestModel(metric="accuracy", direction="max"),
    ),
)
