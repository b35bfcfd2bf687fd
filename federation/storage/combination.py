"""From one model and the updates of a round to the next model, file to file, tile by tile.

Rules, in order:

1. Parameters: x⁺ = x + rule(Δ), in float64, rounded once to the tensor's dtype; rule(Δ) is Σp_iΔ_i/Σp_i or its like.
2. float16 and bfloat16 parameters keep a float32 master (`federation.storage.rounding`).
3. Float buffers and other float values: Σp_ib_i/Σp_i, whatever the rule. Integers and booleans: elementwise maximum.
4. A result that is not finite in its dtype is refused; the candidate is then aborted by whoever holds its writer.

Memory is a few tiles of every site, whatever the model. Everything is read by position, so nothing is mapped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from federation.aggregation.combiner import Combiner
from federation.aggregation.maximum import Maximum
from federation.aggregation.mean import WeightedMean
from federation.aggregation.tiles import TILE_ELEMENTS, Array, Tile, tiles_of
from federation.names import PayloadName
from federation.storage.norms import squared_norm
from federation.storage.rounding import HALF, Parameters, Rounder
from federation.storage.rule_state import KeepingCombiner
from federation.storage.tile_streams import PayloadTiles, TileStream, cut, runs, split
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.aggregation.rule import Combines, RuleReport
    from federation.aggregation.scores import Scores
    from federation.names import Digest, SiteName
    from federation.storage.disk import Readable
    from federation.storage.memory import ModelSink, ModelSource
    from federation.storage.scoring import Scoring

DELTA = PayloadName("delta")
BUFFERS = PayloadName("buffers")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteUpdate:
    """What one site contributes.

    Attributes:
        site: its name.
        payloads: its flat buffers (or, where a method is combined, its payloads as they came): ``delta``, w - x of
            ``schema.parameters``; ``buffers``, values of ``schema.buffers``, where the schema has any; and others.
        weight: p_i: finite, 0 or more. A method weighs sites itself and does not look at it.
    """

    site: SiteName
    payloads: Mapping[PayloadName, Readable]
    weight: float = 0.0

    @property
    def delta(self) -> Readable:
        """The change of the parameters."""
        return self.payloads[DELTA]

    @property
    def buffers(self) -> Readable | None:
        """Values of the buffers; None where there are none."""
        return self.payloads.get(BUFFERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """A finished candidate.

    Attributes:
        digest: of its data section.
        update_norm: L2 norm of the parameters' aggregated change.
        weights: weight of each site's change, in name order, not normalised.
        scores: of each site's change, where there were at least two; see `federation.aggregation.scores`.
        slot_digests: of each slot of a method's state.
        scalars: numbers that the method computed for the round.
        report: what the rule says of the round, where it says something.
    """

    digest: Digest
    update_norm: float
    weights: tuple[float, ...] = ()
    scores: Mapping[SiteName, Scores] = field(default_factory=dict)
    slot_digests: Mapping[str, Digest] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    report: RuleReport | None = None


def needs_master(schema: TensorSchema) -> bool:
    """Tell whether a model has parameters in half precision, which need a float32 master."""
    return any(spec.dtype in HALF and spec.elements for spec in schema.parameters)


def master_schema(schema: TensorSchema) -> TensorSchema:
    """Return the schema of the master file: per half-precision dtype one flat float32 tensor of its parameters."""
    specs = []
    for segment in schema.parameters.segments:
        if segment.dtype in HALF:
            specs.append(TensorSpec(name=segment.dtype.value, dtype=DType.FLOAT32, shape=(segment.elements,)))
    return TensorSchema.of(specs)


def write_master(writer: ModelSink, model: ModelSource) -> Digest:
    """Write the first master of a model: its half-precision parameters, widened. The caller commits.

    Args:
        writer: for `master_schema` of the model's schema.
        model: model file, role LOCAL allowed.
    """
    for run in runs(model.schema):
        if run.role is TensorRole.PARAMETER and run.tile.dtype in HALF:
            for piece in cut(run.tile, TILE_ELEMENTS):
                half = np.empty(piece.elements, dtype=piece.dtype.numpy)
                model.pread_into(piece.offset, half.view(np.uint8).data)
                writer.append(half.astype(np.float32).view(np.uint8).data)
    return writer.finish()


def combine_model(
    *,
    model: ModelSource,
    writer: ModelSink,
    rule: Combines,
    updates: Sequence[SiteUpdate],
    master: ModelSource | None = None,
    master_writer: ModelSink | None = None,
    scoring: Scoring | None = None,
    tile_elements: int = TILE_ELEMENTS,
) -> Combined:
    """Write the candidate for the next model. Blocks; call it in a thread.

    Args:
        model: the present model x, with the federated schema.
        writer: of the same schema; finished here, committed or aborted by the caller.
        rule: for the parameters; the float buffers are combined by their mean.
        updates: what was admitted, in any order.
        master: float32 master of the half-precision parameters, if `needs_master`.
        master_writer: for the next master; finished here.
        scoring: watches the combination of the changes; None: nothing is scored.
        tile_elements: most elements of a tile.

    Raises:
        ValueError: no update has a weight above 0, or a payload the schema needs is missing.
        PlanError: the result is not finite in the dtype of a tensor.
        StorageError: the disk failed.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    weights = [update.weight for update in ordered]
    deltas = site_tiles(ordered, weights, [update.delta for update in ordered], model.schema.parameters, tile_elements)
    results = scoring.watch(rule, deltas) if scoring else rule.combine(deltas)
    squares = walk(
        model=model,
        writer=writer,
        changes={DELTA: TileStream(deltas, results)},
        values=value_streams(ordered, weights, model.schema.buffers, tile_elements),
        step=None,
        master=master,
        master_writer=master_writer,
        tile_elements=tile_elements,
    )
    report = rule.report if isinstance(rule, Combiner | KeepingCombiner) else None
    return Combined(
        digest=writer.finish(),
        update_norm=math.sqrt(squares),
        weights=tuple(weights),
        scores=scoring.finish(report) if scoring else {},
        report=report,
    )


class Step(Protocol):
    """What is done to a piece of the parameters."""

    def __call__(self, x: Array, means: Mapping[str, Array], piece: Tile, start: int, /) -> float:
        """Change `x` in place and return the squared norm of the change.

        Args:
            x: the piece, float64.
            means: combined elements of each payload at the same place; may be overwritten.
            piece: dtype and elements; its offset is that in the flat buffer of the *parameters*.
            start: index of its first element among all parameters.
        """


def walk(
    *,
    model: ModelSource,
    writer: ModelSink,
    changes: Mapping[str, TileStream],
    values: Mapping[bool, TileStream],
    step: Step | None,
    master: ModelSource | None,
    master_writer: ModelSink | None,
    tile_elements: int,
) -> float:
    """Write the next model in order: parameters through `step`, buffers as combined; return the sum of `step`'s.

    Args:
        model: the present model.
        writer: takes the next one; not finished here.
        changes: streams over equal tiles of the parameters, at least one.
        values: streams of the buffers: under True the floats, under False the others.
        step: sees every parameter once, in order; None: the one change there is, is added.
        master: as for `combine_model`.
        master_writer: finished here.
        tile_elements: most elements of a piece.

    Raises:
        ValueError: half-precision parameters without a master.
        PlanError, StorageError: as `combine_model`.
    """
    if needs_master(model.schema) and (master is None or master_writer is None):
        raise ValueError("float16 and bfloat16 parameters need a master")
    parts = list(runs(model.schema))
    most = min(tile_elements, max((run.tile.elements for run in parts), default=0))
    parameters, rounder = Parameters(model, master, master_writer, most), Rounder(most)
    squares, start, offset = 0.0, 0, 0
    for run in parts:
        left = run.tile
        while left.elements:
            if run.role is TensorRole.PARAMETER:
                means = take_all(changes, left.elements)
                piece, left = split(left, next(iter(means.values())).size)
                if step is None:
                    (change,) = means.values()
                    squares += squared_norm(change)
                    out = parameters.add(piece, change)
                else:
                    x = parameters.read(piece)
                    squares += step(x, means, replace(piece, offset=offset), start)
                    out = parameters.write(piece, x)
                start, offset = start + piece.elements, offset + piece.nbytes
            else:
                value = values[left.dtype.is_float].take(left.elements)
                piece, left = split(left, value.size)
                out = rounder.round(piece, value)
            writer.append(out.view(np.uint8).data)
    for stream in (*changes.values(), *values.values()):
        stream.finish()
    if master_writer is not None:
        master_writer.finish()
    return squares


def take_all(changes: Mapping[str, TileStream], most: int) -> dict[str, Array]:
    """Take as many elements from each of several streams over equal tiles."""
    return {name: stream.take(most) for name, stream in changes.items()}


def combine_values(
    *,
    writer: ModelSink,
    updates: Sequence[tuple[SiteName, float, Readable]],
    tile_elements: int = TILE_ELEMENTS,
) -> Digest:
    """Write the mean of values, not changes, such as aggregated optimizer state; of integers and booleans the maximum.

    Args:
        writer: its schema lays out every site's buffer; finished here, committed or aborted by the caller.
        updates: site, weight p_i and flat buffer of each, in any order.
        tile_elements: most elements of a tile.

    Raises:
        ValueError, PlanError, StorageError: as `combine_model`.
    """
    rows = sorted(updates, key=lambda row: row[0])
    ordered = [SiteUpdate(site=site, payloads={BUFFERS: values}) for site, _, values in rows]
    streams = value_streams(ordered, [weight for _, weight, _ in rows], writer.schema, tile_elements)
    rounder = Rounder(tile_elements)
    for segment in writer.schema.segments:
        left = Tile(dtype=segment.dtype, offset=segment.offset, elements=segment.elements)
        while left.elements:
            value = streams[left.dtype.is_float].take(left.elements)
            piece, left = split(left, value.size)
            writer.append(rounder.round(piece, value).view(np.uint8).data)
    for stream in streams.values():
        stream.finish()
    return writer.finish()


def value_streams(
    updates: Sequence[SiteUpdate], weights: Sequence[float], schema: TensorSchema, most: int
) -> dict[bool, TileStream]:
    """Return streams of combined buffers, under True the floats, under False the others; none without buffers.

    Never by a robust rule: running statistics are no vector, and their mean with p_i is what the model was trained for.

    Raises:
        ValueError: an update has none, though the schema has.
    """
    if not schema.nbytes:
        return {}
    payloads = [update.buffers for update in updates if update.buffers is not None]
    if len(payloads) != len(updates):
        raise ValueError("an update lacks the buffers its schema has")
    floats = site_tiles(updates, weights, payloads, schema, most)
    others = site_tiles(updates, weights, payloads, schema, most, floats=False)
    return {
        True: TileStream(floats, WeightedMean().combine(floats)),
        False: TileStream(others, Maximum().combine(others)),
    }


def site_tiles(
    updates: Sequence[SiteUpdate],
    weights: Sequence[float],
    payloads: Sequence[Readable],
    schema: TensorSchema,
    most: int,
    *,
    floats: bool = True,
) -> PayloadTiles:
    """Return one payload of every site as tiles; updates, weights and payloads in name order."""
    sites = [update.site for update in updates]
    return PayloadTiles(sites, weights, payloads, tiles_of(schema, floats=floats, tile_elements=most))
