"""Label flip: an honest learner of wrong labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.attacks.attack import Attack
from federation.compression.options import arguments_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.attacks.attack import Array


@dataclass(frozen=True, slots=True)
class LabelFlip(Attack):
    """Each hostile site trains on labels turned round: a mislabelled archive looks just so.

    Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    section 4.1.

        y ← C − 1 − y

    Specification: ``label_flip``.
    """

    name: ClassVar[str] = "label_flip"
    source: ClassVar[str] = "arXiv:1911.11815, section 4.1"
    poisons: ClassVar[bool] = True

    @classmethod
    def of(cls, arguments: Sequence[str]) -> LabelFlip:
        """Make it from the texts behind the colon: there are none."""
        arguments_of("label_flip", arguments, 0, 0)
        return cls()

    def poison(self, samples: Array, targets: Array, *, classes: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the samples as they are, with C − 1 − y.

        Raises:
            ValueError: targets are no classes.
        """
        if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
            raise ValueError(f"targets of shape {targets.shape[1:]} and {targets.dtype} are no classes to flip")
        return samples, (classes - 1 - targets).astype(targets.dtype)
