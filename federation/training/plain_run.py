"""A local run of plain layers by plain SGD: what `TorchProblem.run` does of it, and nothing else. Imports torch.

A third of a small site's training goes by in what a run may have and this one has not: a method that looks at
gradients, state of an optimizer, parts that are frozen, another device, clipping, metrics, an end that the clock says.

Rules, in order:

1. It is for a task of cross-entropy and SGD without options, on the CPU, that reports its loss alone, and for a round
   of whole passes in minibatches.
2. The layers must be as they were found, with nothing that hangs on them, and batches of every size that comes proven
   (`federation.training.plain_layers`). That is looked at once, as nothing but our own code runs from then on. So the
   first runs of a model go the long way, which proves.
3. Batches, steps and the mean of the loss are made by what makes them on the long way: the same bits. Nothing draws
   from torch's generator, and no layer knows a mode; so neither is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from federation.training.passes import Means
from federation.training.plain_sgd import PlainSgd

if TYPE_CHECKING:
    from federation.data.local import LocalData
    from federation.training.context import RoundContext
    from federation.training.plain_layers import PlainLayers
    from federation.training.recipe import Recipe
    from federation.training.structure import Structure


def way_through(
    recipe: Recipe, model: torch.nn.Module, structure: Structure, data: LocalData, round: RoundContext
) -> PlainLayers | None:
    """Return the layers that `train` is to run through, or None if the run has to go the long way.

    Args:
        recipe: what the task says.
        model: on the CPU, loaded.
        structure: of the model when it was last looked at.
        data: the site's.
        round: the round.
    """
    layers = structure.plain_layers(model)
    if layers is None or not _is_plain(recipe) or not data.is_arrays:
        return None
    if round.estimator != "minibatch" or round.epochs is None or round.seconds is not None or round.optimizer_state:
        return None
    if not all(map(layers.is_proven, data.batch_sizes(recipe.batch_size))):
        return None
    layers.forget_gradients()
    arrays: Any = data.train
    samples, targets = (torch.from_numpy(part[:1].copy()) for part in arrays)
    return layers if layers.takes(model, samples, targets) else None


def train(layers: PlainLayers, data: LocalData, batch_size: int, round: RoundContext) -> dict[str, float]:
    """Train in place; returns the mean loss, if there was an example."""
    optimizer, means, rng = PlainSgd(layers.parameters, round.learning_rate), Means(), round.rng("shuffle")
    for _ in range(round.epochs or 0):
        for samples, targets in data.batches(batch_size, rng):
            optimizer.zero_grad()
            loss, _ = layers.go_back(torch.from_numpy(samples), torch.from_numpy(targets))
            means.add(len(targets), {"loss": loss.item()})
            optimizer.step()
    return means.result()


def _is_plain(recipe: Recipe) -> bool:
    return (
        recipe.loss == "cross_entropy"
        and recipe.optimizer == "sgd"
        and not recipe.optimizer_options
        and not recipe.metrics
        and recipe.max_gradient_norm is None
        and recipe.device == "cpu"
    )
