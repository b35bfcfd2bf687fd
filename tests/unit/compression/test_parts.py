"""A step is cut the same way at both ends, and a malformed one is refused before anything is believed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.compression import encode_payload, load_codec
from federation.compression.codec import BytesSource
from federation.compression.parts import decoders, header_of, max_step_bytes, parts_of, prefix_of
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable


def schema(*rows: tuple[str, DType, tuple[int, ...]]) -> TensorSchema:
    return TensorSchema.of(TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in rows)


MODEL = schema(
    ("a", DType.FLOAT64, (3,)),
    ("b", DType.FLOAT32, (30, 4)),  # 120: cut by rows
    ("c", DType.FLOAT32, (2, 70)),  # a row is too large: cut by elements
    ("d", DType.FLOAT32, (5,)),
    ("e", DType.FLOAT32, (0, 9)),
    ("f", DType.FLOAT32, ()),
    ("g", DType.BFLOAT16, (7, 3)),
)


def frames(vectors: list[np.ndarray], codec: str) -> bytes:
    parts = parts_of(MODEL, 50)
    made = [
        encode_payload(part.schema, vector.data.cast("B"), load_codec(codec), seed=place)
        for place, (part, vector) in enumerate(zip(parts, vectors, strict=True))
    ]
    return header_of(parts) + b"".join(prefix_of(frame) + frame for frame in made)


def vectors() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=part.elements).astype(part.schema.segments[0].dtype.numpy) for part in parts_of(MODEL, 50)]


def test_parts_cover_every_parameter_once_in_order_and_none_is_larger_than_it_may_be() -> None:
    parts = parts_of(MODEL, 50)
    assert [part.elements for part in parts] == [3, 48, 48, 24, 50, 50, 40 + 5 + 1, 21]
    offset = 0
    for part in parts:
        assert part.offset == offset
        assert part.schema.elements == part.elements <= 50
        offset += part.elements * part.dtype.itemsize
    assert offset == MODEL.nbytes
    shapes = [spec.shape for part in parts for spec in part.schema]
    assert sum(map(math.prod, shapes)) == MODEL.elements
    assert (12, 4) in shapes  # rows of a matrix are a matrix
    assert (7, 3) in shapes


def test_half_precision_changes_by_float32_and_dtypes_are_never_mixed() -> None:
    parts = parts_of(MODEL)
    assert [(part.dtype, part.schema.segments[0].dtype) for part in parts] == [
        (DType.FLOAT64, DType.FLOAT64),
        (DType.FLOAT32, DType.FLOAT32),
        (DType.BFLOAT16, DType.FLOAT32),
    ]


def test_a_model_of_one_dtype_is_one_part() -> None:
    model = schema(("a", DType.FLOAT32, (30, 4)), ("b", DType.FLOAT32, (4,)))
    (part,) = parts_of(model)
    assert [spec.shape for spec in part.schema] == [(30, 4), (4,)]


def test_what_was_encoded_is_decoded_part_by_part() -> None:
    expected = vectors()
    source = BytesSource(frames(expected, "bfloat16"))
    for (part, decoder), vector in zip(decoders(source, parts_of(MODEL, 50), "bfloat16"), expected, strict=True):
        out = np.empty(part.elements, vector.dtype)
        decoder.read(0, out)
        np.testing.assert_allclose(out, vector, rtol=2**-8)


@pytest.mark.parametrize("codec", ["natural", "rand_k:0.5", "top_k:0.5", "stc:0.5", "powersgd:2", "eden:2", "int8:64"])
def test_no_step_is_larger_than_said(codec: str) -> None:
    rng = np.random.default_rng(1)
    parts = parts_of(MODEL)
    made = []
    for part in parts:
        vector = rng.normal(size=part.elements).astype(part.schema.segments[0].dtype.numpy)
        made.append(encode_payload(part.schema, vector.data.cast("B"), load_codec(codec), seed=7))
    step = header_of(parts) + b"".join(prefix_of(frame) + frame for frame in made)
    assert len(step) <= max_step_bytes(MODEL, load_codec(codec))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda step: step[:5], "inside its header", id="no header"),
        pytest.param(lambda step: b"XXXX" + step[4:], "must begin with", id="other magic"),
        pytest.param(lambda step: step[:4] + b"\xff" + step[5:], "must begin with", id="other number of parts"),
        pytest.param(lambda step: step[:-1], "claims a part of", id="one byte short"),
        pytest.param(lambda step: step + b"!", "goes on for 1 bytes", id="one byte long"),
        pytest.param(lambda step: step[:8] + b"\xff" * 8 + step[16:], "claims a part of", id="huge part"),
        pytest.param(lambda step: step[:10], "before a part", id="cut in a size"),
        pytest.param(lambda step: step.replace(b"natural", b"qsgd:16"), "frame names codec", id="other codec"),
    ],
)
def test_a_malformed_step_is_refused(spoil: Callable[[bytes], bytes], message: str) -> None:
    step = spoil(frames(vectors(), "natural"))
    with pytest.raises(ValueError, match=message):
        for _, _decoder in decoders(BytesSource(step), parts_of(MODEL, 50), "natural"):
            pass
