"""From one model and the updates of a round to the next model, file to file, tile by tile.

Rules, in order:

1. Parameters: x⁺ = x + rule(Δ), in float64, rounded once to the tensor's dtype; rule(Δ) is Σp_iΔ_i/Σp_i or its like.
2. float16 and bfloat16 parameters keep a float32 *master*, which is what the change is added to; the model is the
   master, rounded. Without it, changes smaller than half a unit in the last place would be lost round after round.
3. Float buffers and other float values: rule(b). Integers and booleans: elementwise maximum.
4. A result that is not finite in its dtype is refused; the candidate is then aborted by whoever holds its writer.

Memory is a few tiles, whatever the model and the number of sites. Everything is read by position, so nothing is mapped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.maximum import Maximum
from federation.aggregation.tiles import TILE_ELEMENTS, Array, Tile, tiles_of
from federation.errors import PlanError
from federation.storage.tile_streams import PayloadTiles, TileStream, cut, runs, split
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.aggregation.rule import AggregationRule
    from federation.names import Digest, SiteName
    from federation.storage.checkpoints import ModelFile, ModelWriter
    from federation.storage.disk import Readable

_DOT_ELEMENTS = 1 << 13
"""Below the size from which OpenBLAS splits a dot product over threads."""
_HALF = (DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteUpdate:
    """What one site contributes.

    Attributes:
        site: its name.
        weight: p_i: finite, 0 or more.
        delta: flat buffer of ``schema.parameters``: w - x.
        buffers: flat buffer of ``schema.buffers``: values; None where the schema has none.
    """

    site: SiteName
    weight: float
    delta: Readable
    buffers: Readable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """A finished candidate: `digest` of its data section, `update_norm` (L2) of the parameters' aggregated change."""

    digest: Digest
    update_norm: float


def needs_master(schema: TensorSchema) -> bool:
    """Tell whether a model has parameters in half precision, which need a float32 master."""
    return any(spec.dtype in _HALF and spec.elements for spec in schema.parameters)


def master_schema(schema: TensorSchema) -> TensorSchema:
    """Return the schema of the master file: per half-precision dtype one flat float32 tensor of its parameters."""
    specs = []
    for segment in schema.parameters.segments:
        if segment.dtype in _HALF:
            specs.append(TensorSpec(name=segment.dtype.value, dtype=DType.FLOAT32, shape=(segment.elements,)))
    return TensorSchema.of(specs)


def write_master(writer: ModelWriter, model: ModelFile) -> Digest:
    """Write the first master of a model: its half-precision parameters, widened. The caller commits.

    Args:
        writer: for `master_schema` of the model's schema.
        model: model file, role LOCAL allowed.
    """
    for run in runs(model.schema):
        if run.role is TensorRole.PARAMETER and run.tile.dtype in _HALF:
            for piece in cut(run.tile, TILE_ELEMENTS):
                half = np.empty(piece.elements, dtype=piece.dtype.numpy)
                model.pread_into(piece.offset, half.view(np.uint8).data)
                writer.append(half.astype(np.float32).view(np.uint8).data)
    return writer.finish()


def combine_model(
    *,
    model: ModelFile,
    writer: ModelWriter,
    rule: AggregationRule,
    updates: Sequence[SiteUpdate],
    master: ModelFile | None = None,
    master_writer: ModelWriter | None = None,
    tile_elements: int = TILE_ELEMENTS,
) -> Combined:
    """Write the candidate for the next model. Blocks; call it in a thread.

    Args:
        model: the present model x, with the federated schema.
        writer: of the same schema; finished here, committed or aborted by the caller.
        rule: for parameters and float buffers.
        updates: what was admitted, in any order.
        master: float32 master of the half-precision parameters, if `needs_master`.
        master_writer: for the next master; finished here.
        tile_elements: most elements of a tile.

    Raises:
        ValueError: no update has a weight above 0, or a payload the schema needs is missing.
        PlanError: the result is not finite in the dtype of a tensor.
        StorageError: the disk failed.
    """
    schema = model.schema
    if needs_master(schema) and (master is None or master_writer is None):
        raise ValueError("float16 and bfloat16 parameters need a master")
    ordered = sorted(updates, key=lambda update: update.site)
    deltas = _tiles(ordered, [update.delta for update in ordered], schema.parameters, True, tile_elements)
    changes = TileStream(deltas, rule.combine(deltas))
    values = _value_streams(rule, ordered, schema.buffers, tile_elements) if schema.buffers.nbytes else None
    halves = _Master(master, master_writer, tile_elements)
    adder = _Adder(model, tile_elements)
    squares = 0.0
    for run in runs(schema):
        left = run.tile
        while left.elements:
            if run.role is TensorRole.PARAMETER:
                change = changes.take(left.elements)
                squares += _squares(change)
                piece, left = split(left, change.size)
                out = halves.add(piece, change) if piece.dtype in _HALF else adder.add(piece, change)
            else:
                assert values is not None  # noqa: S101 - a buffer run means a buffer schema
                value = values[left.dtype.is_float].take(left.elements)
                piece, left = split(left, value.size)
                out = adder.set(piece, value)
            writer.append(out.view(np.uint8).data)
    if master_writer is not None:
        master_writer.finish()
    return Combined(digest=writer.finish(), update_norm=math.sqrt(squares))


def combine_values(
    *,
    writer: ModelWriter,
    rule: AggregationRule,
    updates: Sequence[tuple[SiteName, float, Readable]],
    tile_elements: int = TILE_ELEMENTS,
) -> Digest:
    """Write the combination of values, not changes, such as aggregated optimizer state.

    Args:
        writer: its schema lays out every site's buffer; finished here, committed or aborted by the caller.
        rule: for floats; integers and booleans are combined by maximum.
        updates: site, weight p_i and flat buffer of each, in any order.
        tile_elements: most elements of a tile.

    Raises:
        ValueError, PlanError, StorageError: as `combine_model`.
    """
    ordered = [
        SiteUpdate(site=site, weight=weight, delta=values, buffers=values)
        for site, weight, values in sorted(updates, key=lambda row: row[0])
    ]
    streams = _value_streams(rule, ordered, writer.schema, tile_elements)
    adder = _Adder(None, tile_elements)
    for segment in writer.schema.segments:
        left = Tile(dtype=segment.dtype, offset=segment.offset, elements=segment.elements)
        while left.elements:
            value = streams[left.dtype.is_float].take(left.elements)
            piece, left = split(left, value.size)
            writer.append(adder.set(piece, value).view(np.uint8).data)
    return writer.finish()


def _squares(values: Array) -> float:
    total = 0.0
    for start in range(0, values.size, _DOT_ELEMENTS):
        block = values[start : start + _DOT_ELEMENTS]
        total += float(np.dot(block, block))
    return total


def _value_streams(
    rule: AggregationRule, updates: Sequence[SiteUpdate], schema: TensorSchema, most: int
) -> dict[bool, TileStream]:
    """Streams of combined values: under True the floats, under False the others."""
    payloads = [update.buffers for update in updates if update.buffers is not None]
    if len(payloads) != len(updates):
        raise ValueError("an update lacks the buffers its schema has")
    floats = _tiles(updates, payloads, schema, True, most)
    others = _tiles(updates, payloads, schema, False, most)
    return {True: TileStream(floats, rule.combine(floats)), False: TileStream(others, Maximum().combine(others))}


def _tiles(
    updates: Sequence[SiteUpdate], payloads: Sequence[Readable], schema: TensorSchema, floats: bool, most: int
) -> PayloadTiles:
    sites, weights = [update.site for update in updates], [update.weight for update in updates]
    return PayloadTiles(sites, weights, payloads, tiles_of(schema, floats=floats, tile_elements=most))


class _Adder:
    """Rounds results to their dtype in reused buffers, and refuses what does not fit."""

    def __init__(self, base: Readable | None, most: int) -> None:
        self._base = base
        self._wide = np.empty(most, dtype=np.float64)
        self._out = np.empty(most * 8, dtype=np.uint8)

    def add(self, piece: Tile, change: Array) -> Array:
        """Return base + change at a piece."""
        assert self._base is not None  # noqa: S101 - our own call order
        out, wide = self._out[: piece.nbytes].view(piece.dtype.numpy), self._wide[: piece.elements]
        self._base.pread_into(piece.offset, out.view(np.uint8).data)
        np.copyto(wide, out)
        np.add(wide, change, out=wide)
        return self.set(piece, wide)

    def set(self, piece: Tile, value: Array) -> Array:
        """Return `value` in the dtype of a piece."""
        out = self._out[: piece.nbytes].view(piece.dtype.numpy)
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, value, casting="same_kind")
            # ml_dtypes' casts raise no flags, so the numbers themselves are looked at; a sum is cheaper than isfinite.
            total = float(np.sum(out, dtype=np.float64)) if piece.dtype.is_float else 0.0
        if not math.isfinite(total) and not np.isfinite(out).all():
            raise PlanError(
                f"the combined model does not fit {piece.dtype.value}: it has diverged; lower the learning rate, bound "
                "the norm of updates (max_norm), or use a wider dtype"
            )
        return out


class _Master:
    """Adds changes of half-precision parameters to their float32 master, both in order, and rounds the result."""

    def __init__(self, master: ModelFile | None, writer: ModelWriter | None, most: int) -> None:
        self._writer = writer
        self._position = 0
        self._wide = _Adder(master, most)
        self._narrow = _Adder(None, most)

    def add(self, piece: Tile, change: Array) -> Array:
        assert self._writer is not None  # noqa: S101 - checked by combine_model
        full = Tile(dtype=DType.FLOAT32, offset=self._position, elements=piece.elements)
        value = self._wide.add(full, change)
        self._writer.append(value.view(np.uint8).data)
        self._position += full.nbytes
        return self._narrow.set(piece, value)
