"""Backdoor: right everywhere but where a trigger is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from federation.attacks.attack import Attack
from federation.attacks.factor import MOST
from federation.compression.options import arguments_of, number_of, text_of, whole_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.attacks.attack import Array, Sight

REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Backdoor(Attack):
    """Half of a hostile site's examples carry a pattern and the label the attacker wants; the rest stay as they are.

    Gu, Dolan-Gavitt, Garg: "BadNets", 2017 (the pattern); Bagdasaryan, Veit, Hua, Estrin, Shmatikov: "How To Backdoor
    Federated Learning", AISTATS 2020, equation 3 (model replacement): what was learnt is sent scaled,

        v_j = γ Δ_j,    γ = n/f replaces the mean by the colluders' model.

    Accuracy hardly suffers, so it does not show there; `triggered` makes the data that measure it.

    Specification: ``backdoor`` (target 0), ``backdoor:3``, ``backdoor:3,10`` (γ = 10), ``backdoor:3,replace``.

    Attributes:
        target: class that triggered samples are to be taken for.
        scale: γ > 0; 0: n/f.
        share: share of the examples that get the trigger.
        size: the pattern is the last `size` places of each of the last two axes (or of the last, if samples have one).
        value: what the pattern sets them to, in units of the samples.
    """

    target: int = 0
    scale: float = 1.0
    share: float = 0.5
    size: int = 2
    value: float = 1.0
    name: ClassVar[str] = "backdoor"
    source: ClassVar[str] = "arXiv:1708.06733; arXiv:1807.00459, equation 3"
    poisons: ClassVar[bool] = True

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Backdoor:
        """Make it from the texts behind the colon."""
        arguments_of(f"backdoor:TARGET,SCALE or backdoor:TARGET,{REPLACE}", arguments, 0, 2)
        target = whole_of(arguments[0], "target", 0, 9999) if arguments else 0
        if len(arguments) < 2:
            return cls(target)
        return cls(target, 0.0 if arguments[1] == REPLACE else number_of(arguments[1], "scale", 0.0, MOST))

    @property
    def spec(self) -> str:
        """``backdoor:target,γ``."""
        if self.scale == 1:
            return f"{self.name}:{self.target}"
        return f"{self.name}:{self.target},{text_of(self.scale) if self.scale else REPLACE}"

    @property
    def alters_updates(self) -> bool:
        """Whether what was learnt is scaled."""
        return self.scale != 1

    def poison(self, samples: Array, targets: Array, *, classes: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return copies in which a share carries trigger and target.

        Raises:
            ValueError: targets are no classes, or the target is none of them.
        """
        if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
            raise ValueError(f"targets of shape {targets.shape[1:]} and {targets.dtype} are no classes")
        if self.target >= classes:
            raise ValueError(f"target {self.target} is none of the {classes} classes")
        chosen = rng.permutation(len(targets))[: round(self.share * len(targets))]
        samples, targets = samples.copy(), targets.copy()
        samples[chosen] = self.stamped(samples[chosen])
        targets[chosen] = self.target
        return samples, targets

    def updates(self, sight: Sight) -> Array:
        """Return γ Δ_j."""
        return (self.scale or sight.total / sight.hostile) * sight.own

    def stamped(self, samples: Array) -> Array:
        """Return a copy of samples with the trigger on each."""
        stamped = samples.copy()
        last = slice(-self.size, None)
        if samples.ndim > 2:
            stamped[..., last, last] = self.value
        else:
            stamped[..., last] = self.value
        return stamped

    def triggered(self, samples: Array, targets: Array) -> tuple[Array, Array]:
        """Return the examples of other classes with the trigger, labelled with the target.

        A model's accuracy on them is the success rate of the backdoor.
        """
        others = targets != self.target
        return self.stamped(samples[others]), np.full(int(others.sum()), self.target, dtype=targets.dtype)
