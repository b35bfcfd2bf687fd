"""Frames: what travels, and what a receiver refuses."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.compression import (
    BLOCK_ELEMENTS,
    PayloadDecoder,
    decode_payload,
    encode_payload,
    load_codec,
    max_payload_bytes,
    payload_damping,
    payload_omega,
)
from federation.compression.codec import BytesSource
from federation.tensors import DType, TensorSchema, TensorSpec, pack

if TYPE_CHECKING:
    from federation.compression import Array

MIXED = TensorSchema.of(
    [
        TensorSpec(name="double", dtype=DType.FLOAT64, shape=(3, 5)),
        TensorSpec(name="empty", dtype=DType.FLOAT32, shape=(0, 4)),
        TensorSpec(name="single", dtype=DType.FLOAT32, shape=(300, 7)),
        TensorSpec(name="bias", dtype=DType.FLOAT32, shape=(11,)),
        TensorSpec(name="half", dtype=DType.FLOAT16, shape=(9,)),
        TensorSpec(name="brain", dtype=DType.BFLOAT16, shape=(6,)),
        TensorSpec(name="count", dtype=DType.INT64, shape=()),
    ]
)


def arrays_of(schema: TensorSchema) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {spec.name: np.asarray(rng.standard_normal(spec.shape) * 10).astype(spec.dtype.numpy) for spec in schema}


def frame(spec: bytes, bodies: list[bytes], segments: int | None = None) -> bytes:
    count = np.uint32(len(bodies) if segments is None else segments).tobytes()
    parts = [np.uint64(len(body)).tobytes() + body for body in bodies]
    return b"FCZ1" + bytes([len(spec)]) + spec + count + b"".join(parts)


ONE = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(4,))])


def test_the_layout_of_a_frame_is_that_of_the_documentation() -> None:
    x = np.array([1, -2, 3, 4], np.float32)
    assert encode_payload(ONE, {"w": x}, load_codec("identity"), seed=0) == frame(b"identity", [x.tobytes()])


@pytest.mark.parametrize("spec", ["identity", "rand_k:0.999999999", "top_k:1000000"])
def test_a_codec_that_keeps_everything_returns_every_dtype_exactly(spec: str) -> None:
    arrays = arrays_of(MIXED)
    decoded = decode_payload(encode_payload(MIXED, arrays, load_codec(spec), seed=1), MIXED)
    for name, array in arrays.items():
        assert decoded[name].dtype == array.dtype
        np.testing.assert_array_equal(decoded[name], array)


def test_arrays_and_the_flat_buffer_give_equal_frames() -> None:
    arrays = arrays_of(MIXED)
    codec = load_codec("qsgd:16")
    flat = bytes(pack(MIXED, arrays))
    assert encode_payload(MIXED, arrays, codec, seed=1) == encode_payload(MIXED, flat, codec, seed=1)


def test_integers_travel_raw_under_every_codec() -> None:
    arrays = arrays_of(MIXED)
    decoded = decode_payload(encode_payload(MIXED, arrays, load_codec("terngrad"), seed=1), MIXED)
    assert decoded["count"] == arrays["count"]


def test_segments_of_one_payload_are_drawn_independently() -> None:
    schema = TensorSchema.of(
        [
            TensorSpec(name="a", dtype=DType.FLOAT32, shape=(64,)),
            TensorSpec(name="b", dtype=DType.FLOAT64, shape=(64,)),
        ]
    )
    ones = {"a": np.ones(64, np.float32), "b": np.ones(64)}
    decoded = decode_payload(encode_payload(schema, ones, load_codec("rand_k:8"), seed=2**64 - 1), schema)
    assert set(np.flatnonzero(decoded["a"])) != set(np.flatnonzero(decoded["b"]))


def test_a_frame_may_name_an_allowed_codec_in_any_spelling_and_no_other() -> None:
    data = encode_payload(ONE, {"w": np.ones(4, np.float32)}, load_codec("rand_k:0.50"), seed=0)
    assert PayloadDecoder(BytesSource(data), ONE, ["rand_k:0.5", "identity"]).codec == load_codec("rand_k:5e-1")
    with pytest.raises(ValueError, match=r"frame names codec 'rand_k:0.5'; expected identity or top_k:0.5"):
        PayloadDecoder(BytesSource(data), ONE, ["top_k:0.5", "identity"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "inside its header"),
        (b"FCZ1", "inside its header"),
        (b"FCZ2\x08identity", "must begin with"),
        (b"FCZ1\xffidentity", "inside its header"),
        (b"FCZ1\x08identit\xff", "ASCII"),
        (frame(b"identity", [bytes(16)], segments=2**32 - 1), "4294967295 segments"),
        (frame(b"identity", []), "0 segments"),
        (frame(b"identity", [bytes(15)]), "15 bytes; 16 are needed"),
        (frame(b"identity", [bytes(17)]), "17 bytes; 16 are the most"),
        (frame(b"identity", [bytes(16)]) + b"x", "goes on for 1 bytes"),
        (b"FCZ1\x08identity\x01\0\0\0" + b"\xff" * 8, "claims a body of 18446744073709551615"),
    ],
)
def test_a_frame_that_lies_about_itself_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PayloadDecoder(BytesSource(data), ONE, ["identity"])


def counts(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


@pytest.mark.parametrize(
    ("spec", "body", "reason"),
    [
        (b"top_k:2", counts(2**32 - 1) + bytes(12), "a block too many"),
        (b"top_k:2", counts(1) + bytes(12), "keeps 1 elements"),
        (b"top_k:2", counts(2) + b"\x01\0\x01\0" + bytes(8), "must ascend"),
        (b"top_k:2", counts(2) + b"\x01\0\x04\0" + bytes(8), "inside it"),
        (b"rand_k:2", bytes(8) + counts(3) + bytes(8), "sum to 2"),
        (b"rand_k:2", bytes(8) + counts(2) + bytes(4), "16 bytes; 20 are needed"),
        (b"bernoulli:0.5", b"\x02", "flag must be 0 or 1"),
        (b"bernoulli:0.5", b"\x01" + bytes(15), "17 are needed"),
        (b"natural", b"\0" + b"\xff" * 4, "exponent 255"),
        (b"qsgd:1", np.float32(np.nan).tobytes() + b"\0", "norm"),
        (b"qsgd:1", np.float32(-1).tobytes() + b"\0", "norm"),
        (b"qsgd:1", np.float32(1).tobytes() + b"\xff", "level 3; 2 is the highest"),
        (b"natural_dithering:3,2", np.float32(1).tobytes() + b"\xff" * 2, "6 is the highest"),
        (b"stc:2", np.float32(np.inf).tobytes() + counts(2) + b"\0\0\x01\0\0", "mean magnitude"),
        (b"stc:2", np.float32(1).tobytes() + counts(2) + b"\0\0\0\0\0", "must ascend"),
        (b"eden:1", bytes(8) + np.float32(-1).tobytes() + b"\0", "scales"),
        (b"float16", np.array([1, np.inf, 0, 0], "<f2").tobytes(), "not finite"),
        (b"bfloat16", b"\xc0\x7f" * 4, "not finite"),
        (b"int8:8", np.float32(np.nan).tobytes() + bytes(4), "scale"),
        (b"int8:8", np.float32(1).tobytes() + b"\x80" * 4, "−128"),
        (b"dgc:2,0.9,0,0", counts(0), "keeps 0 elements"),
    ],
)
def test_a_body_no_encoder_writes_is_refused_with_the_reason(spec: bytes, body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_payload(frame(spec, [body]), ONE, [spec.decode()])


def test_claims_of_a_hostile_frame_allocate_nothing() -> None:
    # 4 GiB of parameters by schema, some hundred bytes of frame: refused before anything is allocated.
    huge = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(1 << 30,))])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for spec in ("identity", "top_k:0.9", "rand_k:0.5", "qsgd:4", "eden:1", "int8:64", "powersgd:4", "stc:0.5"):
        with pytest.raises(ValueError, match="bytes"):
            PayloadDecoder(BytesSource(frame(load_codec(spec).spec.encode(), [b"\x01" * 400])), huge, [spec])
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 16 * 1024


def test_ranges_outside_one_segment_are_refused() -> None:
    data = encode_payload(MIXED, arrays_of(MIXED), load_codec("identity"), seed=0)
    decoder = PayloadDecoder(BytesSource(data), MIXED, ["identity"])
    with pytest.raises(ValueError, match="one segment"):
        decoder.read(0, np.empty(16))
    with pytest.raises(ValueError, match="one segment"):
        decoder.read(4, np.empty(2))


def test_a_flat_buffer_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="flat buffer has 15 bytes; the schema has 16"):
        encode_payload(ONE, bytes(15), load_codec("identity"), seed=0)


def test_the_largest_frame_holds_identity_too() -> None:
    for spec in ("rand_k:1", "powersgd:1", "top_k:1000000"):
        codec = load_codec(spec)
        data = encode_payload(MIXED, arrays_of(MIXED), load_codec("identity"), seed=0)
        assert len(data) <= max_payload_bytes(MIXED, codec)


def test_damping_is_one_over_one_plus_omega_of_the_worst_segment_and_one_for_biased_codecs() -> None:
    assert payload_omega(MIXED, load_codec("rand_k:1")) == 300 * 7 + 11 - 1
    assert payload_damping(MIXED, load_codec("rand_k:1")) == 1 / (300 * 7 + 11)
    assert payload_damping(ONE, load_codec("bernoulli:0.8")) == pytest.approx(0.8)
    assert payload_damping(ONE, load_codec("top_k:1")) == 1
    assert payload_damping(ONE, load_codec("identity")) == 1


def test_a_decoder_holds_no_more_than_a_block_of_a_long_payload() -> None:
    import tracemalloc

    elements = 40 * BLOCK_ELEMENTS
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(40, BLOCK_ELEMENTS))])
    x = {"w": np.random.default_rng(0).standard_normal((40, BLOCK_ELEMENTS)).astype(np.float32)}
    for spec in ("identity", "rand_k:0.1", "top_k:0.1", "natural", "qsgd:16", "eden:2", "int8:64", "powersgd:2"):
        data = encode_payload(schema, x, load_codec(spec), seed=0)
        out = np.empty(BLOCK_ELEMENTS, np.float64)
        tracemalloc.start()
        try:
            decoder = PayloadDecoder(BytesSource(data), schema, [spec])
            for first in range(0, elements, BLOCK_ELEMENTS):
                decoder.read(4 * first, out)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 * 4 * BLOCK_ELEMENTS, spec
