"""How a whole payload travels encoded: a frame that names its codec, with one body per run of equal dtype.

Frame: ``b"FCZ1"``; u8 length and ASCII specification of the codec; u32 number of segments; then for each segment of the
schema, in buffer order, u64 size of its body and the body. All numbers are little-endian.

Rules, in order:

1. Each segment (all elements of one dtype) is one vector: K, norms and ω are per segment. Segment i is encoded with
   seed + i modulo 2^64.
2. Half-precision segments are widened to float32 before any codec but identity; integers always travel raw.
3. A receiver says which codecs it allows. The frame's own text is only compared with theirs, never looked up; sizes
   are checked against the schema before anything is allocated; the bodies must fill the frame exactly.
4. Nothing that is not finite is ever encoded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.compression.codec import (
    BLOCK_ELEMENTS,
    BytesSource,
    PartSource,
    block_size,
    read_array,
)
from federation.compression.identity import Identity
from federation.compression.registry import load_codec
from federation.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from federation.compression.codec import Array, BlockDecoder, Buffer, Codec, Source
    from federation.tensors import Segment, TensorSchema

MAGIC = b"FCZ1"
_IDENTITY = Identity()


def encode_payload(
    schema: TensorSchema,
    flat: Mapping[str, Array] | Buffer,
    codec: Codec,
    *,
    seed: int,
    state: Mapping[str, Array] | None = None,
) -> bytes:
    """Return the frame of a payload.

    Args:
        schema: its tensors.
        flat: its elements: arrays by tensor name, maybe float32 where the schema has half precision, or the flat
            buffer.
        codec: how to encode them.
        seed: 64-bit seed, by `derive_seed`, of everything drawn.
        state: what the feedback of the codec keeps (`federation.compression.feedback`); None: nothing.

    Raises:
        ValueError: an element is not finite, or the codec cannot express it.
    """
    text = codec.spec.encode("ascii")
    parts: list[Buffer] = [MAGIC, bytes([len(text)]), text, np.uint32(len(schema.segments)).tobytes()]
    for index, segment in enumerate(schema.segments):
        chosen = _codec_of(segment, codec)
        vector = _vector(schema, flat, segment).astype(_working_dtype(segment, chosen), copy=False)
        if segment.dtype.is_float and not _is_finite(vector):
            raise ValueError(
                f"payload has a {segment.dtype.value} element that is not finite and cannot be encoded; "
                "training diverged: lower the learning rate"
            )
        used = chosen if state is None else chosen.warmed(state, index)
        body = used.encode(vector, (seed + index) % (1 << 64), segment_shapes(schema, segment))
        parts += [np.uint64(len(body)).tobytes(), body]
    return b"".join(parts)


def decode_payload(data: Buffer, schema: TensorSchema, allowed: Collection[str] | None = None) -> dict[str, Array]:
    """Return the tensors of a frame as new arrays of their own dtypes.

    Args:
        data: the frame.
        schema: what it holds.
        allowed: specifications of the codecs it may use. None: whatever it names, for frames of our own making.

    Raises:
        ValueError: it is not a frame of `schema` by an allowed codec.
    """
    source = BytesSource(data)
    if allowed is None:
        allowed = (spec_of(source),)
    decoder = PayloadDecoder(source, schema, allowed)
    flat = {segment.offset: np.empty(segment.elements, segment.dtype.numpy) for segment in schema.segments}
    for offset, vector in flat.items():
        decoder.read(offset, vector)
    arrays: dict[str, Array] = {}
    for spec in schema:
        offset = schema.offsets[spec.name]
        found = next((s for s in schema.segments if s.offset <= offset < s.offset + s.nbytes), None)
        if found is None or not spec.elements:
            arrays[spec.name] = np.empty(spec.shape, spec.dtype.numpy)
            continue
        first = (offset - found.offset) // spec.dtype.itemsize
        arrays[spec.name] = flat[found.offset][first : first + spec.elements].reshape(spec.shape)
    return arrays


def max_payload_bytes(schema: TensorSchema, codec: Codec) -> int:
    """Return the size of the largest frame by `codec` or by identity, in bytes."""
    total = len(MAGIC) + 1 + max(len(codec.spec), len(_IDENTITY.spec)) + 4
    for segment in schema.segments:
        chosen = _codec_of(segment, codec)
        itemsize = _working_dtype(segment, chosen).itemsize
        largest = chosen.max_bytes(segment.elements, itemsize, segment_shapes(schema, segment))
        total += 8 + max(largest, segment.nbytes)
    return total


def payload_omega(schema: TensorSchema, codec: Codec) -> float:
    """Return ω of a payload: the largest of its float segments; infinite for a biased codec, 0 without floats."""
    return max((codec.omega(segment.elements) for segment in schema.segments if segment.dtype.is_float), default=0.0)


def payload_damping(schema: TensorSchema, codec: Codec) -> float:
    """Return 1/(1 + ω) of a payload for unbiased codecs, 1 for biased ones."""
    return 1.0 / (1.0 + payload_omega(schema, codec)) if codec.is_unbiased else 1.0


def spec_of(source: Source) -> str:
    """Return the codec's specification that a frame names, unchecked beyond its form.

    Raises:
        ValueError: the bytes do not begin as a frame does.
    """
    if source.nbytes < 5:
        raise ValueError(f"frame ends after {source.nbytes} bytes, inside its header")
    head = read_array(source, 0, 5, "u1").tobytes()
    if head[:4] != MAGIC:
        raise ValueError(f"frame must begin with {MAGIC!r}, got {head[:4]!r}")
    if source.nbytes < 5 + head[4]:
        raise ValueError(f"frame ends after {source.nbytes} bytes, inside its header")
    text = read_array(source, 5, head[4], "u1").tobytes()
    if not text.isascii():
        raise ValueError("the codec a frame names must be ASCII")
    return text.decode("ascii")


class PayloadDecoder:
    """Reads a frame block by block, holding one decoded block per segment.

    Args:
        source: the frame; kept and read from as long as the decoder is used.
        schema: what it must hold.
        allowed: specifications of the codecs it may use, as a plan writes them.

    Attributes:
        codec: the codec the frame names.

    Raises:
        ValueError: it is not a frame of `schema` by an allowed codec.
        PlanError: `allowed` names a codec that is not here.
    """

    def __init__(self, source: Source, schema: TensorSchema, allowed: Collection[str]) -> None:
        codecs = {codec.spec: codec for codec in map(load_codec, allowed)}
        spec = spec_of(source)
        if spec not in codecs:
            raise ValueError(f"frame names codec {spec[:80]!r}; expected {' or '.join(sorted(codecs))}")
        self.codec = codecs[spec]
        self._readers = [
            _SegmentReader(segment, _open(schema, segment, self.codec, body), dtype)
            for segment, body, dtype in bodies_of(source, schema, self.codec)
        ]

    def read(self, offset: int, out: Array) -> None:
        """Decode `out.size` elements from byte `offset` of the *flat* payload on, in `out.dtype`.

        Whole blocks in the codec's own dtype are decoded straight into `out`.

        Args:
            offset: where the first element lies in the flat buffer; with all others in one segment.
            out: 1-D, contiguous.

        Raises:
            ValueError: the range is not inside one segment, or a block is malformed.
        """
        for reader in self._readers:
            segment = reader.segment
            first, rest = divmod(offset - segment.offset, segment.dtype.itemsize)
            if 0 <= first and first + out.size <= segment.elements and not rest:
                reader.read(first, out)
                return
        raise ValueError(f"{out.size} elements at byte {offset} do not lie in one segment of the payload")


class _SegmentReader:
    def __init__(self, segment: Segment, decoder: BlockDecoder, dtype: np.dtype[Any]) -> None:
        self.segment, self._decoder, self._dtype = segment, decoder, dtype
        self._cached = -1
        self._cache: Array | None = None

    def read(self, first: int, out: Array) -> None:
        """Decode elements from `first` on into `out`."""
        done = 0
        # A scale that a hostile frame chose, or a half's range, may give infinity: the caller checks for finite.
        with np.errstate(over="ignore", invalid="ignore"):
            while done < out.size:
                block, skip = divmod(first + done, BLOCK_ELEMENTS)
                size = block_size(self.segment.elements, block)
                take = min(size - skip, out.size - done)
                part = out[done : done + take]
                if take == size and out.dtype == self._dtype and block != self._cached:
                    self._decoder.read(block, part)
                else:
                    part[:] = self._block(block, size)[skip : skip + take]
                done += take

    def _block(self, block: int, size: int) -> Array:
        if self._cache is None:
            self._cache = np.empty(min(self.segment.elements, BLOCK_ELEMENTS), self._dtype)
        view = self._cache[:size]
        if block != self._cached:
            self._cached = -1
            self._decoder.read(block, view)
            self._cached = block
        return view


def segment_shapes(schema: TensorSchema, segment: Segment) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a segment's tensors, in buffer order; empty tensors are left out."""
    return tuple(spec.shape for spec in schema if spec.dtype is segment.dtype and spec.elements)


def bodies_of(
    source: Source, schema: TensorSchema, codec: Codec
) -> Iterator[tuple[Segment, PartSource, np.dtype[Any]]]:
    """Yield each segment of a frame with its body and the dtype its codec works in; `codec` is the one it names.

    Raises:
        ValueError: the bodies do not fill the frame exactly, or are not one for each segment.
    """
    position = _read_count(source, 5 + len(codec.spec), len(schema.segments))
    for segment in schema.segments:
        if source.nbytes - position < 8:
            raise ValueError(f"frame ends after {source.nbytes} bytes, before a body")
        size = int(read_array(source, position, 1, "<u8")[0])
        position += 8
        if size > source.nbytes - position:
            raise ValueError(f"frame claims a body of {size} bytes and has {source.nbytes - position} left")
        yield segment, PartSource(source, position, size), _working_dtype(segment, _codec_of(segment, codec))
        position += size
    if position != source.nbytes:
        raise ValueError(f"frame goes on for {source.nbytes - position} bytes after its last body")


def _open(schema: TensorSchema, segment: Segment, codec: Codec, body: Source) -> BlockDecoder:
    chosen = _codec_of(segment, codec)
    dtype = _working_dtype(segment, chosen)
    shapes = segment_shapes(schema, segment)
    largest = chosen.max_bytes(segment.elements, dtype.itemsize, shapes)
    if body.nbytes > largest:
        raise ValueError(f"{chosen.name} body has {body.nbytes} bytes; {largest} are the most")
    return chosen.decoder(body, segment.elements, dtype, shapes)


def _read_count(source: Source, position: int, expected: int) -> int:
    if source.nbytes - position < 4:
        raise ValueError(f"frame ends after {source.nbytes} bytes, inside its header")
    count = int(read_array(source, position, 1, "<u4")[0])
    if count != expected:
        raise ValueError(f"frame has {count} segments; the schema has {expected}")
    return position + 4


def _codec_of(segment: Segment, codec: Codec) -> Codec:
    return codec if segment.dtype.is_float else _IDENTITY


def _working_dtype(segment: Segment, codec: Codec) -> np.dtype[Any]:
    if isinstance(codec, Identity) or segment.dtype not in (DType.FLOAT16, DType.BFLOAT16):
        return segment.dtype.numpy
    return DType.FLOAT32.numpy


def _vector(schema: TensorSchema, flat: Mapping[str, Array] | Buffer, segment: Segment) -> Array:
    dtype = segment.dtype.numpy
    if isinstance(flat, bytes | bytearray | memoryview):
        if memoryview(flat).nbytes != schema.nbytes:
            raise ValueError(f"flat buffer has {memoryview(flat).nbytes} bytes; the schema has {schema.nbytes}")
        return np.frombuffer(flat, dtype, segment.elements, segment.offset)
    names = [spec.name for spec in schema if spec.dtype is segment.dtype and spec.elements]
    arrays = [np.ascontiguousarray(flat[name]).reshape(-1) for name in names]
    vector = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if vector.dtype not in (dtype, segment.dtype.widened.numpy) or vector.size != segment.elements:
        raise ValueError(f"arrays have {vector.size} {vector.dtype}; the schema has {segment.elements} {dtype}")
    return vector


def _is_finite(vector: Array) -> bool:
    """Tell whether all are finite: minimum and maximum carry NaN and infinity out, without a mask of the vector."""
    return math.isfinite(float(vector.min())) and math.isfinite(float(vector.max()))
