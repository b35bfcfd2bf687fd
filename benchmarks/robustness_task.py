"""The network of the robustness table: two layers, its gradient written out, for runs of a quarter of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from federation import GradientTask

if TYPE_CHECKING:
    from collections.abc import Mapping


class Digits(GradientTask):
    """Cross-entropy of softmax(W₂ᵀ relu(W₁ᵀx + b₁) + b₂), and accuracy."""

    def gradient(
        self, model: dict[str, Any], samples: Any, targets: Any
    ) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        """Return loss and accuracy, and the gradient by each array."""
        x = samples.reshape(len(samples), -1)
        with np.errstate(over="ignore", invalid="ignore"):  # what an attack left may be huge
            hidden = np.maximum(x @ model["w1"] + model["b1"], 0)
            scores = hidden @ model["w2"] + model["b2"]
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares = powers / powers.sum(axis=1, keepdims=True)
            rows = np.arange(len(targets))
            loss = float(-np.log(np.maximum(shares[rows, targets], 1e-30)).mean())
            accuracy = float((scores.argmax(axis=1) == targets).mean())
            error = shares.copy()
            error[rows, targets] -= 1
            error /= len(targets)
            back = (error @ model["w2"].T) * (hidden > 0)
            gradients = {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}
        return {"loss": loss, "accuracy": accuracy}, gradients
