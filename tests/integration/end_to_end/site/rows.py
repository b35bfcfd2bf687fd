"""Shards for the end-to-end tests; trainers find this module through ``trainer.python_path``."""

from __future__ import annotations

import numpy as np

from federation.data.shard import ArrayShard

FEATURES = 4


class Rows(ArrayShard):
    """Noisy rows around one line that all sites share, more or fewer of them.

    Args:
        examples: rows to train on.
        seed: differs by site.
    """

    def __init__(self, examples: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        samples = rng.standard_normal((examples + 8, FEATURES)).astype(np.float32)
        targets = samples @ np.array([1.0, -2.0, 0.5, 3.0], np.float32) + 0.25
        targets += 0.1 * rng.standard_normal(len(targets)).astype(np.float32)
        super().__init__(
            train=(samples[:examples], targets[:examples]),
            validation=(samples[examples:], targets[examples:]),
            description=f"{examples} rows around a line",
        )


class Classes(ArrayShard):
    """The same samples, to be told into two classes by the sign of the line."""

    def __init__(self, examples: int, seed: int) -> None:
        rows = Rows(examples, seed)
        train = (rows.train[0], (rows.train[1] > 0).astype(np.int64))
        validation = (rows.validation[0], (rows.validation[1] > 0).astype(np.int64))
        super().__init__(train=train, validation=validation, description="two classes")
