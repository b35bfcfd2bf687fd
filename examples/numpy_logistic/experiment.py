"""Logistic regression on NumPy arrays, with a task of one's own: nothing here needs torch."""

import numpy as np

from federation import BestModel, Experiment, Plan

FEATURES = 30


def model() -> dict[str, np.ndarray]:
    """Return the model: a dictionary of arrays. Floats are trained."""
    return {"weights": np.zeros(FEATURES), "bias": np.zeros(1)}


class LogisticRegression:
    """A task is any object with these two methods."""

    def train(self, model, data, round):
        """Minimise the log-loss by mini-batch gradient descent, in place."""
        rng = round.rng("shuffle")
        for _ in range(round.epochs):
            for samples, targets in data.batches(16, rng):
                error = probability(model, samples) - targets
                model["weights"] -= round.learning_rate * samples.T @ error / len(targets)
                model["bias"] -= round.learning_rate * error.mean()
        return metrics(model, *data.train)

    def evaluate(self, model, data):
        """Measure on the site's validation patients."""
        return metrics(model, *data.validation)


def probability(model, samples):
    return 1 / (1 + np.exp(-(samples @ model["weights"] + model["bias"])))


def metrics(model, samples, targets):
    p = np.clip(probability(model, samples), 1e-7, 1 - 1e-7)
    loss = -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    return {"loss": loss, "accuracy": np.mean((p > 0.5) == targets)}


experiment = Experiment(
    name="numpy-logistic",
    model=model,
    task=LogisticRegression(),
    shard="breast-cancer",
    metrics=("loss", "accuracy"),
    sample_shape=(FEATURES,),
    plan=Plan(
        rounds=40,
        sites=3,
        minimum_sites=2,
        local_epochs=5,
        learning_rate=1.0,
        best=BestModel(metric="loss", direction="min"),
    ),
)
