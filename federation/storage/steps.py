"""What the server sends instead of a whole model, and what both ends make of it: compression from server to site.

x is the server's model, x̂ what sites hold; both begin as the submitted model. Rules, in order:

1. The server sends m = C(x⁺ − x̂) of the parameters; both ends do x̂⁺ = x̂ + m/(1 + ω) for an unbiased codec, x̂ + m for
   a biased one, part by part (`federation.compression.parts`), in float64, rounded once to each tensor's dtype. Without
   the factor a codec with ω ≥ 1 would lead away from x. What was lost, rounding included, is in x⁺ − x̂⁺, and so in the
   next step: that is the error feedback, and nothing else is kept.
2. Buffers are never compressed: x̂⁺ has those of x⁺.
3. Both ends call `apply_step` with the same bytes, so they agree to the bit. The digest of what comes out is announced
   beside the step: an end that gets another one fetches x̂⁺ whole.

EF21-P (arXiv:2209.15218) is this with one exact gradient step between two broadcasts. Memory is a part while a step is
made, and a few tiles while it is applied, whatever the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.tiles import TILE_ELEMENTS, Array, Tile
from federation.compression.frame import encode_payload, payload_damping
from federation.compression.parts import Part, decoders, header_of, parts_of, prefix_of
from federation.compression.registry import load_codec
from federation.errors import PlanError
from federation.rounds.randomness import derive_seed
from federation.storage.encoded import RoleOf
from federation.storage.rounding import Rounder
from federation.storage.tile_streams import cut, runs, split
from federation.tensors import TensorRole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.compression.frame import PayloadDecoder
    from federation.names import Digest
    from federation.plan import Plan
    from federation.storage.disk import Readable
    from federation.storage.memory import ModelSink, ModelSource
    from federation.storage.tile_streams import ByteSink


def write_step(*, model: ModelSource, held: ModelSource, plan: Plan, round_number: int, sink: ByteSink) -> None:
    """Write C(x⁺ − x̂), encoded by ``plan.downlink``. Blocks; call it in a thread.

    Args:
        model: x⁺, the federated tensors.
        held: x̂, of the same schema.
        plan: names the codec, and the seed that everything drawn derives from, with the round and no site.
        round_number: round that made x⁺.
        sink: takes the step.

    Raises:
        PlanError: the codec cannot express a value.
        StorageError: the disk failed.
    """
    codec = load_codec(plan.downlink)
    parts = parts_of(model.schema.parameters)
    new, old = RoleOf(model, TensorRole.PARAMETER), RoleOf(held, TensorRole.PARAMETER)
    sink.append(header_of(parts))
    for place, part in enumerate(parts):
        change = _read(new, part)
        change -= _read(old, part)
        flat = change.astype(part.schema.segments[0].dtype.numpy, copy=False)
        seed = derive_seed(plan.seed, round_number, "", f"compression/step/{place}")
        try:
            frame = encode_payload(part.schema, flat.view(np.uint8).data, codec, seed=seed)
        except ValueError as error:
            raise PlanError(f"downlink {plan.downlink!r} cannot encode the model's change: {error}") from error
        sink.append(prefix_of(frame))
        sink.append(frame)


def apply_step(
    *, held: ModelSource, step: Readable, buffers: Readable | None, downlink: str, writer: ModelSink
) -> Digest:
    """Write x̂⁺ and return the digest of its flat buffer. Blocks; call it in a thread.

    Args:
        held: x̂, the federated tensors.
        step: as `write_step` made it.
        buffers: values of the buffers of x⁺; None where the model has none.
        downlink: codec the step must be of.
        writer: of the schema of `held`; finished here, committed or aborted by the caller.

    Raises:
        ValueError: it is not a step of this model by this codec, or buffers are missing.
        PlanError: a result does not fit its dtype, or the codec is not here.
        StorageError: the disk failed.
    """
    if held.schema.buffers.nbytes and buffers is None:
        raise ValueError("a step of a model with buffers needs their values")
    parameters = RoleOf(held, TensorRole.PARAMETER)
    stream = _Stream(_stepped(parameters, step, parts_of(held.schema.parameters), downlink))
    rounder, copied = Rounder(TILE_ELEMENTS, "model that sites hold"), 0
    for run in runs(held.schema):
        left = run.tile
        while left.elements:
            if run.role is TensorRole.PARAMETER:
                value = stream.take(left.elements)
                piece, left = split(left, value.size)
                out = rounder.round(piece, value)
            else:
                piece, left = split(left, min(left.elements, TILE_ELEMENTS))
                out = np.empty(piece.nbytes, dtype=np.uint8)
                if buffers is not None:
                    buffers.pread_into(copied, out.data)
                copied += piece.nbytes
            writer.append(out.view(np.uint8).data)
    stream.finish()
    return writer.finish()


def _read(parameters: RoleOf, part: Part) -> Array:
    """Return a part's parameters as float64."""
    raw = np.empty(part.elements, dtype=part.dtype.numpy)
    parameters.pread_into(part.offset, raw.view(np.uint8).data)
    return raw.astype(np.float64)


def _stepped(parameters: RoleOf, step: Readable, parts: tuple[Part, ...], downlink: str) -> Iterator[Array]:
    """Yield x̂ + m/(1 + ω) in order, float64, in tiles; each is good until the next."""
    codec = load_codec(downlink)
    rounder, wide = Rounder(TILE_ELEMENTS), np.empty(TILE_ELEMENTS, dtype=np.float64)
    for part, decoder in decoders(step, parts, downlink):
        damping = payload_damping(part.schema, codec)
        change = np.empty(min(part.elements, TILE_ELEMENTS), dtype=part.schema.segments[0].dtype.numpy)
        first = 0
        for tile in cut(Tile(dtype=part.dtype, offset=part.offset, elements=part.elements), TILE_ELEMENTS):
            m = _decoded(decoder, first, change[: tile.elements], wide)
            if damping != 1.0:
                m *= damping
            m += rounder.read(parameters, tile)
            yield m
            first += tile.elements


def _decoded(decoder: PayloadDecoder, first: int, change: Array, wide: Array) -> Array:
    decoder.read(first * change.itemsize, change)
    m = wide[: change.size]
    np.copyto(m, change)
    return m


class _Stream:
    """Arrays that are taken in pieces of any size."""

    def __init__(self, arrays: Iterator[Array]) -> None:
        self._arrays = arrays
        self._left: Array = np.empty(0)

    def take(self, most: int) -> Array:
        """Return 1 to `most` next elements; good until the next call."""
        if not self._left.size:
            self._left = next(self._arrays)
        piece, self._left = self._left[:most], self._left[most:]
        return piece

    def finish(self) -> None:
        """Read to the end: a step that is longer than its model is refused."""
        if self._left.size or next(self._arrays, None) is not None:
            raise RuntimeError("parts and schema are of different models")
