"""A plain round of a small model, all sites at once: `combine_model`'s arithmetic without its tiles.

Of a model of a few thousand numbers, combining takes less time than cutting it into tiles and handing these around.
So where nothing but a weighted mean is asked for, and the model is parameters of one dtype that need no master, the
changes are read into one matrix. Each number is the same sum, in the same order and the same dtype: the bytes do not
tell which way was taken, nor do digest, norm and scores.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.linear import common_factor
from federation.aggregation.mean import WeightedMean, normalised
from federation.aggregation.rule import RuleReport
from federation.aggregation.tiles import TILE_ELEMENTS, Tile
from federation.storage.combination import Combined
from federation.storage.norms import squared_norm
from federation.storage.rounding import HALF, Rounder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.aggregation.combiner import Aggregation
    from federation.storage.combination import SiteUpdate
    from federation.storage.memory import ModelSink, ModelSource
    from federation.storage.scoring import Scoring
    from federation.tensors import TensorSchema

SMALL_BYTES = 1 << 20
"""Of the matrix of changes, float64: it stays in a core's cache."""


def is_small(schema: TensorSchema, aggregation: Aggregation, updates: int) -> bool:
    """Tell whether `average` can combine a round.

    Args:
        schema: of the federated tensors.
        aggregation: the plan's.
        updates: how many.
    """
    if type(aggregation.rule) is not WeightedMean or aggregation.before or len(schema.segments) != 1:
        return False
    (segment,) = schema.segments
    if segment.dtype in HALF or schema.parameters.nbytes != schema.nbytes:
        return False
    return segment.elements <= min(TILE_ELEMENTS, SMALL_BYTES // (8 * max(updates, 1)))


def average(
    *,
    model: ModelSource,
    writer: ModelSink,
    updates: Sequence[SiteUpdate],
    weights: Sequence[float],
    aggregation: Aggregation,
    scoring: Scoring,
) -> Combined:
    """Write the candidate for the next model, as `combine_model` would.

    Args:
        model: the present model, of a schema that `is_small`.
        writer: of the same schema; finished here, committed or aborted by the caller.
        updates: what was admitted, in name order.
        weights: p_i of each.
        aggregation: the plan's.
        scoring: takes in the changes.

    Raises:
        ValueError: no update has a weight above 0.
        PlanError: the result is not finite in the dtype of the model, or there are too few updates for the rule.
        StorageError: the disk failed.
    """
    aggregation.check(len(updates))
    (segment,) = model.schema.segments
    piece = Tile(dtype=segment.dtype, offset=0, elements=segment.elements)
    sites, shares = [update.site for update in updates], normalised(weights)
    rows = np.empty((len(updates), piece.elements), dtype=piece.dtype.numpy)
    change, term = np.empty(piece.elements), np.empty(piece.elements)
    common = common_factor(shares, rows.dtype)
    for place, (update, row) in enumerate(zip(updates, rows, strict=True)):  # in name order
        update.delta.pread_into(0, row.view(np.uint8).data)
        target = term if place else change
        np.copyto(target, row)
        if common is None:
            np.multiply(target, shares[place], out=target)
        if place:
            np.add(change, term, out=change)
    if common is not None:
        np.multiply(change, common, out=change)
    scoring.take(sites, rows, change)
    rounder = Rounder(piece.elements)
    x = rounder.read(model, piece)
    np.add(x, change, out=x)
    writer.append(rounder.round(piece, x).view(np.uint8).data)
    report = RuleReport(weights=dict(zip(sites, shares, strict=True)), note="the weighted mean")
    return Combined(
        digest=writer.finish(),
        update_norm=math.sqrt(squared_norm(change)),
        weights=tuple(weights),
        scores=scoring.finish(report),
        report=report,
    )
