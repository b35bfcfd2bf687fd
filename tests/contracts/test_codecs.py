"""What every codec promises. A new codec is added to `SPECS` and must pass.

Statistics are of fixed seeds; a bound of five standard deviations of the mean is what "equal" means in them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from federation.compression import BLOCK_ELEMENTS, decode_payload, encode_payload, load_codec, max_payload_bytes
from federation.compression.codec import BytesSource, block_count, block_size
from federation.compression.frame import PayloadDecoder
from federation.compression.registry import BUILT_IN
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from federation.compression import Array, Codec

SPECS = (
    "identity",
    "bernoulli:0.7",
    "rand_k:0.1",
    "rand_k:0.8",
    "rand_k:5",
    "top_k:0.1",
    "top_k:3",
    "natural",
    "dithering:4,1",
    "dithering:300,2",
    "dithering:1,inf",
    "qsgd:1",
    "qsgd:16",
    "terngrad",
    "natural_dithering:3,2",
    "natural_dithering:8,inf",
    "dgc:0.1",
    "dgc:0.01,0.9,10,1",
    "stc:0.1",
    "eden:1",
    "eden:2",
    "eden:3",
    "eden:4",
    "drive",
    "float16",
    "float16:stochastic",
    "bfloat16",
    "bfloat16:stochastic",
    "int8:64",
    "int8:64,stochastic",
    "powersgd:2",
)
UNBIASED = [spec for spec in SPECS if load_codec(spec).is_unbiased and not spec.startswith(("eden", "drive"))]
CONTRACTIVE = [spec for spec in SPECS if not load_codec(spec).is_unbiased]
SIZES = (1, 2, 9, 1000, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 2 * BLOCK_ELEMENTS + 777)
DTYPES = (DType.FLOAT32, DType.FLOAT64)


def schema_of(elements: int, dtype: DType = DType.FLOAT32) -> TensorSchema:
    """A matrix where the number allows it, so that low rank has something to do."""
    rows = next((r for r in (16, 8, 5, 3) if elements % r == 0 and elements > 2 * r), 1)
    shape = (elements,) if rows == 1 else (rows, elements // rows)
    return TensorSchema.of([TensorSpec(name="w", dtype=dtype, shape=shape)])


def encode(codec: Codec, x: Array, seed: int = 0) -> bytes:
    schema = schema_of(x.size, DType.of(x.dtype))
    return encode_payload(schema, {"w": x.reshape(schema["w"].shape)}, codec, seed=seed)


def decode(data: bytes, x: Array) -> Array:
    return decode_payload(data, schema_of(x.size, DType.of(x.dtype)))["w"].reshape(-1)


def normal(size: int, dtype: DType = DType.FLOAT32, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(dtype.numpy)


def test_every_built_in_codec_is_in_this_suite() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(BUILT_IN)


@pytest.mark.parametrize("spec", SPECS)
def test_the_canonical_specification_names_an_equal_codec(spec: str) -> None:
    codec = load_codec(spec)
    assert load_codec(codec.spec) == codec
    assert codec.spec.isascii()
    assert len(codec.spec) <= 255


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_body_keeps_its_announced_size_and_decodes_to_the_shape_and_dtype(spec: str, size: int, dtype: DType) -> None:
    codec, x = load_codec(spec), normal(size, dtype)
    data = encode(codec, x)
    assert len(data) <= max_payload_bytes(schema_of(size, dtype), codec)
    decoded = decode(data, x)
    assert decoded.shape == x.shape
    assert decoded.dtype == x.dtype
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("spec", SPECS)
def test_equal_seeds_give_equal_bytes(spec: str) -> None:
    codec, x = load_codec(spec), normal(70_000)
    assert encode(codec, x, seed=7) == encode(codec, x, seed=7)


@pytest.mark.parametrize("spec", SPECS)
def test_encoding_leaves_the_vector_as_it_was(spec: str) -> None:
    x = normal(70_000)
    before = x.copy()
    encode(load_codec(spec), x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("spec", SPECS)
def test_blocks_in_any_order_and_ranges_across_them_decode_as_the_whole(spec: str) -> None:
    codec, x = load_codec(spec), normal(SIZES[-1])
    data, schema = encode(codec, x), schema_of(x.size)
    whole = decode(data, x)
    decoder = PayloadDecoder(BytesSource(data), schema, [spec])
    for block in reversed(range(block_count(x.size))):
        out = np.empty(block_size(x.size, block), np.float64)
        decoder.read(block * BLOCK_ELEMENTS * 4, out)
        first = block * BLOCK_ELEMENTS
        np.testing.assert_array_equal(out, whole[first : first + out.size])
    across = np.empty(BLOCK_ELEMENTS, np.float32)
    decoder.read(4 * 40_000, across)
    np.testing.assert_array_equal(across, whole[40_000 : 40_000 + across.size])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", [1, 100, BLOCK_ELEMENTS + 3])
def test_a_zero_vector_decodes_to_zeros(spec: str, size: int) -> None:
    x = np.zeros(size, np.float32)
    assert not decode(encode(load_codec(spec), x), x).any()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_before_a_byte_is_made(spec: str, bad: float) -> None:
    x = normal(1000)
    x[500] = bad
    with pytest.raises(ValueError, match="not finite"):
        encode(load_codec(spec), x)


@pytest.mark.parametrize("spec", SPECS)
def test_subnormal_and_huge_numbers_stay_finite_or_are_refused(spec: str) -> None:
    codec = load_codec(spec)
    tiny = np.array([1e-45, -3e-42, 1e-39, 0.0], np.float32)
    assert np.isfinite(decode(encode(codec, tiny), tiny)).all()
    huge = np.array([3.4e38, -3.4028235e38, 1.0, 0.0], np.float32)
    try:
        data = encode(codec, huge)
    except ValueError as error:
        assert "float" in str(error)  # refusing is right, and so is a finite answer; infinity is not
    else:
        assert np.isfinite(decode(data, huge)).all()


@pytest.mark.parametrize("spec", UNBIASED)
def test_the_mean_of_many_draws_is_the_vector_and_their_variance_within_omega(spec: str) -> None:
    # Short vectors are those of the next test.
    codec, draws, size = load_codec(spec), 2000, 300
    x = normal(size, DType.FLOAT64, seed=size)
    values = np.array([decode(encode(codec, x, seed=draw), x) for draw in range(draws)])
    spread = values.std(axis=0) / math.sqrt(draws)
    # A jump so rare that ten are expected at most may not occur, and then no spread shows: one as long as the vector's
    # longest element, or where that is more than the variance allows, a last place of bfloat16. 2^-22: quantisers
    # compute in float32.
    jump = np.abs(values).max() * (1.0 if codec.omega(size) > 1 else 2.0**-7)
    rare = 10 * jump / draws
    assert (np.abs(values.mean(axis=0) - x) <= 5 * spread + rare + 2.0**-22 * np.abs(x).max()).all()
    errors = np.square(values - x).sum(axis=1) / np.square(x).sum()
    assert errors.mean() <= codec.omega(size) + 5 * errors.std() / math.sqrt(draws) + 1e-12


@given(
    x=arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(-1e4, 1e4, width=32).filter(lambda value: not value or abs(value) >= 2.0**-13),
    ).filter(lambda x: bool(x.any()))
)
@settings(max_examples=10)
@pytest.mark.parametrize("spec", UNBIASED)
def test_unbiased_and_within_omega_on_any_vector(spec: str, x: Array) -> None:
    codec, draws = load_codec(spec), 200
    values = np.array([decode(encode(codec, x, seed=draw), x) for draw in range(draws)], np.float64)
    wide = x.astype(np.float64)
    errors = np.square(values - wide).sum(axis=1) / np.square(wide).sum()
    omega = codec.omega(x.size)
    assert errors.mean() <= omega + 5 * errors.std() / math.sqrt(draws) + 1e-6
    # ‖mean − x‖² has expectation at most ω‖x‖²/draws; 30 times that is beyond chance, and a bias shows through it.
    off = np.square(values.mean(axis=0) - wide).sum() / np.square(wide).sum()
    assert off <= 30 * omega / draws + 1e-9


@given(
    x=arrays(
        np.float32,
        st.integers(1, 200),
        elements=st.floats(-1e4, 1e4, width=32).filter(lambda value: not value or abs(value) >= 2.0**-13),
    )
)
@settings(max_examples=60)
@pytest.mark.parametrize("spec", CONTRACTIVE)
def test_a_biased_codec_contracts_any_vector_by_alpha(spec: str, x: Array) -> None:
    codec = load_codec(spec)
    wide = x.astype(np.float64)
    error = np.square(decode(encode(codec, x), x) - wide).sum()
    assert error <= (1 - codec.alpha(x.size)) * np.square(wide).sum() * (1 + 1e-5) + 1e-30


@pytest.mark.parametrize("spec", UNBIASED)
def test_damped_by_one_plus_omega_it_contracts(spec: str) -> None:
    codec, x = load_codec(spec), normal(200, DType.FLOAT64)
    omega = codec.omega(x.size)
    errors = [np.square(decode(encode(codec, x, seed=draw), x) / (1 + omega) - x).sum() for draw in range(500)]
    bound = (1 - codec.alpha(x.size)) * np.square(x).sum()
    assert np.mean(errors) <= bound * (1 + 1e-9) + 5 * np.std(errors) / math.sqrt(500)


@pytest.mark.parametrize("spec", SPECS)
def test_a_frame_cut_anywhere_is_refused(spec: str) -> None:
    x = normal(300)
    data, schema = encode(load_codec(spec), x), schema_of(300)
    for size in {*range(0, 40), len(data) // 2, len(data) - 1}:
        if size < len(data):
            with pytest.raises(ValueError, match=r"frame|body|flag"):
                decode_payload(data[:size], schema, [spec])


@pytest.mark.parametrize("spec", SPECS)
def test_a_flipped_bit_is_refused_or_decodes_to_as_many_numbers_in_no_more_memory(spec: str) -> None:
    x = normal(300)
    data, schema = encode(load_codec(spec), x), schema_of(300)
    rng = np.random.default_rng(0)
    for position in [*range(min(len(data), 60)), *rng.integers(0, len(data), 60).tolist()]:
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        try:
            decoded = decode_payload(bytes(broken), schema, [spec])
        except ValueError:
            continue
        assert decoded["w"].size == 300
