"""A site's data as an experiment sees it: shards, how they are loaded, and ready-made ones.

A shard's owner writes (or picks) a class that follows `Shard`, names it in ``envoy.toml`` as ``module:Class`` with its
options, and is done; `ArrayShard`, `CsvShard` and `NpzShard` make that a few lines. Factories are imported in a trainer
only, never in a process that holds a key. `divide` and `PartShard` give pretended sites their parts of a whole dataset,
by the schemes of `federation.data.partitions`. This package imports without torch.
"""

from federation.data.loading import ShardError, check_shapes, load_shard
from federation.data.local import LocalData
from federation.data.part import PartShard, divide
from federation.data.partitions import PartitionReport
from federation.data.shard import ArrayShard, Dataset, JoinedShard, Shard
from federation.data.tables import CsvShard, NpzShard

__all__ = [
    "ArrayShard",
    "CsvShard",
    "Dataset",
    "JoinedShard",
    "LocalData",
    "NpzShard",
    "PartShard",
    "PartitionReport",
    "Shard",
    "ShardError",
    "check_shapes",
    "divide",
    "load_shard",
]
