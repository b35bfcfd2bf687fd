"""What an attack is: what hostile sites know, and what they make of it.

Rules, in order:

1. An attack is pure: knowledge in, updates out; randomness comes from the generator it is handed.
2. It may spoil the data a site trains on (`Attack.poison`), the update it sends (`Attack.updates`), or both. What it
   does not touch stays honest: examples claimed, metrics, buffers, and vectors of a method beside the change.
3. Colluding sites act as one: `updates` is asked once a round, for all of them.
4. It sends anything; whether that counts is for admission and rule to say, as with everybody's update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the hostile sites of one round know. All updates are changes of the whole model as one vector, float64.

    Attributes:
        own: shape (f, d): what each of them learnt honestly, in name order.
        honest: shape (h, d): the honest updates they see, in name order. In a simulation all of the round, the worst
            case; over the wire a site sees what its like would have sent: `own`.
        total: n, updates of the round, theirs included.
        round: from 1.
        rng: their common stream of this round.
        rule: aggregate of the round if they sent a matrix like `own`; None: they do not know the rule in force.
    """

    own: Array
    honest: Array
    total: int
    round: int = 1
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    rule: Callable[[Array], Array] | None = None

    @property
    def hostile(self) -> int:
        """f, the hostile sites of the round."""
        return len(self.own)

    @property
    def honest_mean(self) -> Array:
        """Mean of the honest updates they see, shape (d,)."""
        mean: Array = self.honest.mean(axis=0)
        return mean

    def everyone(self, vector: Array) -> Array:
        """Return the matrix in which each of them sends `vector`."""
        return np.broadcast_to(vector, self.own.shape).copy()


class Attack:
    """One attack; by itself it does nothing. Subclasses are frozen dataclasses, one in a file.

    Attributes:
        name: as in its specification, ``name:argument,argument``.
        source: paper.
        poisons: whether it spoils training data.
        fewest_seen: honest updates without which it sends what an honest site would, its own among them.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    poisons: ClassVar[bool] = False
    fewest_seen: ClassVar[int] = 1

    @property
    def spec(self) -> str:
        """The text that `load_attack` makes it of."""
        return self.name

    @property
    def alters_updates(self) -> bool:
        """Whether hostile sites send anything else than what they learnt."""
        return not self.poisons

    def poison(self, samples: Array, targets: Array, *, classes: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the data a hostile site trains on instead of its own.

        Args:
            samples: first axis counts examples; not written.
            targets: likewise.
            classes: number of classes in the federation.
            rng: the site's own stream.

        Raises:
            ValueError: such data cannot be spoilt so.
        """
        return samples, targets

    def updates(self, sight: Sight) -> Array:
        """Return what each hostile site sends instead, shape (f, d), float64.

        Raises:
            ValueError: it needs to know what `sight` does not say.
        """
        return sight.own.copy()
