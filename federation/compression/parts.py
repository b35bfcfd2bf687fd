"""A model's change as a sequence of frames, so that neither end holds a whole vector: how the server's step travels.

Rules, in order:

1. The parameters are cut into parts, in buffer order: whole tensors together up to `PART_ELEMENTS`; a larger tensor by
   rows, or by elements where a row is larger still. A part has one dtype, and each part is a vector to its codec: K,
   norms and ω are those of the part. A model of one dtype and up to `PART_ELEMENTS` is one part.
2. Half-precision parameters change by float32 numbers.
3. Layout: ``b"FCS1"``; u32 number of parts; then for each part u64 size and its frame (`federation.compression.frame`).
   Little-endian. A reader knows the parts from the schema it has, and believes none of the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from federation.compression.codec import PartSource, read_array
from federation.compression.frame import PayloadDecoder, max_payload_bytes
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.compression.codec import Codec, Source

MAGIC = b"FCS1"
PART_ELEMENTS = 1 << 20
"""Most elements of a part: what an encoder holds at once is a small multiple of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Neighbouring parameters that are encoded as one vector.

    Attributes:
        schema: its tensors, or pieces of tensors, as its frame has them; float32 where the parameters are narrower.
        dtype: of the parameters themselves.
        offset: first byte in the flat buffer of the parameters.
        elements: how many.
    """

    schema: TensorSchema
    dtype: DType
    offset: int
    elements: int


def parts_of(parameters: TensorSchema, part_elements: int = PART_ELEMENTS) -> tuple[Part, ...]:
    """Cut the parameters of a model into parts, by rule 1.

    Args:
        parameters: floats only.
        part_elements: most elements of a part.
    """
    parts: list[Part] = []
    pending: list[tuple[int, ...]] = []
    dtype, offset, elements = DType.FLOAT32, 0, 0

    def close() -> None:
        nonlocal offset, elements
        if pending:
            parts.append(_part(pending, dtype, offset, elements))
            offset, elements = offset + elements * dtype.itemsize, 0
            pending.clear()

    for spec in parameters:
        for shape in _pieces(spec.shape, part_elements):
            size = math.prod(shape)
            if spec.dtype is not dtype or elements + size > part_elements:
                close()
                dtype = spec.dtype
            pending.append(shape)
            elements += size
    close()
    return tuple(parts)


def header_of(parts: tuple[Part, ...]) -> bytes:
    """Return what comes before the first part."""
    return MAGIC + np.uint32(len(parts)).tobytes()


def prefix_of(frame: bytes) -> bytes:
    """Return what comes before a frame: its size."""
    return np.uint64(len(frame)).tobytes()


def max_step_bytes(parameters: TensorSchema, codec: Codec) -> int:
    """Return the size of the largest step by `codec`, in bytes."""
    parts = parts_of(parameters)
    return len(header_of(parts)) + sum(8 + max_payload_bytes(part.schema, codec) for part in parts)


def decoders(source: Source, parts: tuple[Part, ...], codec: str) -> Iterator[tuple[Part, PayloadDecoder]]:
    """Yield each part with a decoder of its frame, which is good until the next one is asked for.

    Args:
        source: the whole step.
        parts: what it must hold.
        codec: specification of the codec its frames must name.

    Raises:
        ValueError: it is not such a step.
        PlanError: the codec is not here.
    """
    if source.nbytes < 8:
        raise ValueError(f"step ends after {source.nbytes} bytes, inside its header")
    head = read_array(source, 0, 8, "u1").tobytes()
    count = int(np.frombuffer(head, "<u4", 1, 4)[0])
    if head[:4] != MAGIC or count != len(parts):
        raise ValueError(f"step must begin with {MAGIC!r} and {len(parts)} parts, got {head[:4]!r} and {count}")
    position = 8
    for part in parts:
        if source.nbytes - position < 8:
            raise ValueError(f"step ends after {source.nbytes} bytes, before a part")
        size = int(read_array(source, position, 1, "<u8")[0])
        position += 8
        if size > source.nbytes - position:
            raise ValueError(f"step claims a part of {size} bytes and has {source.nbytes - position} left")
        yield part, PayloadDecoder(PartSource(source, position, size), part.schema, (codec,))
        position += size
    if position != source.nbytes:
        raise ValueError(f"step goes on for {source.nbytes - position} bytes after its last part")


def _part(shapes: list[tuple[int, ...]], dtype: DType, offset: int, elements: int) -> Part:
    specs = (TensorSpec(name=f"{place:08}", dtype=dtype.widened, shape=shape) for place, shape in enumerate(shapes))
    return Part(schema=TensorSchema.of(specs), dtype=dtype, offset=offset, elements=elements)


def _pieces(shape: tuple[int, ...], most: int) -> Iterator[tuple[int, ...]]:
    """Yield the shapes a tensor is cut into: itself, blocks of rows, or runs of elements; nothing if it is empty."""
    size = math.prod(shape)
    if size <= most:
        if size:
            yield shape
        return
    row = size // shape[0]
    unit, total, rest = (row, shape[0], shape[1:]) if row <= most else (1, size, ())
    step = most // unit
    for first in range(0, total, step):
        yield (min(step, total - first), *rest)
