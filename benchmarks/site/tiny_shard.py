"""A shard with a few rows of zeros, for workloads that train nothing; found through ``trainer.python_path``."""

import numpy as np

from federation.data.shard import ArrayShard


class TinyShard(ArrayShard):
    """`examples` rows of four zeros, target 0."""

    def __init__(self, examples: int = 16) -> None:
        rows = (np.zeros((examples, 4), np.float32), np.zeros(examples, np.int64))
        super().__init__(train=rows, validation=rows, description="rows of zeros")
