"""Five sites with different digits train a small convolutional network with batch norm."""

from torch import nn

from federation import BestModel, Experiment, Plan, SupervisedTask


def model() -> nn.Module:
    """Return a network for images of 8 by 8 pixels; its batch-norm statistics are federated as buffers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


experiment = Experiment(
    name="digits-cnn",
    model=model,
    task=SupervisedTask(loss="cross_entropy", optimizer="adam", batch_size=32, metrics=("accuracy",)),
    shard="digits",
    sample_shape=(1, 8, 8),
    target_shape=(),
    plan=Plan(
        rounds=15,
        sites=5,
        minimum_sites=3,
        quorum=3,
        deadline_s=120,
        local_epochs=1,
        learning_rate=2e-3,
        best=BestModel(metric="accuracy", direction="max"),
    ),
)
