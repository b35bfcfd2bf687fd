"""Dividing one dataset among pretended sites as real silos differ: by size, by class, by feature.

Every scheme returns for each site the sorted numbers of its examples in the original order. A division depends only
on its arguments and the seed, so an envoy that offers part 3 of 10 and a simulation of ten sites agree about every
example.
"""

from federation.data.partitions.schemes import PartitionScheme, Source, parse_partition
from federation.data.partitions.sizes import iid

__all__ = ["PartitionScheme", "Source", "iid", "parse_partition"]
