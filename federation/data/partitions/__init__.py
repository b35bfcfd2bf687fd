"""Dividing one dataset among pretended sites as real silos differ: by size, by class, by feature, by owner.

Every scheme returns for each site the sorted numbers of its examples in the original order. A division depends only
on its arguments and the seed, so an envoy that offers part 3 of 10 and a simulation of ten sites agree about every
example. Parts are disjoint, but for `iid` with replacement; they hold all examples, but for what `shards` and
`labels_per_site` warn of. Sources: the survey arXiv:2102.02079 and those named at each scheme.
"""

from federation.data.partitions.classes import inner_dirichlet, label_dirichlet, labels_per_site, shards
from federation.data.partitions.features import fcube, fcube_points, feature_noise, natural
from federation.data.partitions.report import PartitionReport
from federation.data.partitions.schemes import PartitionScheme, Source, parse_partition, partition_names
from federation.data.partitions.sizes import balanced, dirichlet_sizes, iid, lognormal_sizes

__all__ = [
    "PartitionReport",
    "PartitionScheme",
    "Source",
    "balanced",
    "dirichlet_sizes",
    "fcube",
    "fcube_points",
    "feature_noise",
    "iid",
    "inner_dirichlet",
    "label_dirichlet",
    "labels_per_site",
    "lognormal_sizes",
    "natural",
    "parse_partition",
    "partition_names",
    "shards",
]
