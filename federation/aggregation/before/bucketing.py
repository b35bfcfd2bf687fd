"""Bucketing. Karimireddy, He, Jaggi: "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from federation.aggregation.before.pre_aggregation import PreAggregation
from federation.aggregation.mixing import MixedTiles
from federation.names import SiteName

if TYPE_CHECKING:
    from federation.aggregation.rule import RuleContext
    from federation.aggregation.tiles import TileSource


class Bucketing(PreAggregation):
    """The rule sees the means of buckets of s vectors, drawn anew each round.

    For data that differ between sites. A hostile site spoils its whole bucket, so the rule must stand the same f among
    ⌈n/s⌉ vectors. Costs no pass of its own. The permutation follows from the plan's seed, which every site reads: a
    hostile site can know which bucket it will be in, and with whom. The bound on f holds for any permutation.

    Formula: y_b = mean of the b-th s vectors of a random permutation; the last bucket may be short.

    Attributes:
        size: s, sites in a bucket.
    """

    name: ClassVar[str] = "bucketing"
    title: ClassVar[str] = "Bucketing"
    source: ClassVar[str] = "arXiv:2006.09365, algorithm 1"
    keeps_sites: ClassVar[bool] = False

    size: int = Field(default=2, ge=2, le=10_000)

    def vectors(self, count: int) -> int:
        """Return ⌈n/s⌉."""
        return math.ceil(count / self.size)

    def wrap(self, source: TileSource, context: RuleContext) -> MixedTiles:
        """Return the means of the buckets."""
        count = len(source.sites)
        order = list(range(count))
        context.random(self.name).shuffle(order)
        buckets = [order[start : start + self.size] for start in range(0, count, self.size)]
        mixing = np.zeros((len(buckets), count))
        for row, bucket in zip(mixing, buckets, strict=True):
            row[bucket] = 1.0 / len(bucket)
        names = [SiteName(f"bucket-{index:04d}") for index in range(len(buckets))]
        weights = [math.fsum(source.weights[index] for index in bucket) for bucket in buckets]
        return MixedTiles(source, mixing, names, weights)
