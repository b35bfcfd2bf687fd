"""Where the randomness of every partition comes from: one stream per seed and scheme."""

from __future__ import annotations

import numpy as np

from federation.rounds.randomness import derive_seed


def generator(seed: int, scheme: str) -> np.random.Generator:
    """Return the generator of a scheme's draws: equal arguments, equal draws, on any machine."""
    return np.random.default_rng(derive_seed(seed, 0, "", f"partition/{scheme}"))
