"""A partial model: the frozen backbone is delivered once, the neck is federated, each site's head stays at home."""

from network import PartialModel

from federation import BestModel, Experiment, Plan, SupervisedTask

experiment = Experiment(
    name="partial-model",
    model=PartialModel,
    task=SupervisedTask(loss="cross_entropy", optimizer="adam", batch_size=32, metrics=("accuracy",)),
    shard="digits",
    sample_shape=(1, 8, 8),
    target_shape=(),
    plan=Plan(
        rounds=10,
        sites=3,
        minimum_sites=2,
        local_epochs=1,
        learning_rate=2e-3,
        local=("backbone.*", "head.*"),
        optimizer_state="keep",
        best=BestModel(metric="accuracy", direction="max"),
    ),
)
