"""Single codecs against what their papers, and a slow obvious version, say. Laws of all of them: tests/contracts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.compression import BLOCK_ELEMENTS, decode_payload, encode_payload, load_codec
from federation.compression.bits import pack, packed_bytes, unpack
from federation.compression.codec import BytesSource
from federation.compression.eden import CENTROIDS, DISTORTION
from federation.compression.rand_k import draw_positions
from federation.compression.registry import codec_names
from federation.errors import PlanError
from federation.tensors import DType, TensorSchema, TensorSpec

HEADER = 4 + 1 + 4 + 8  # magic, length of the specification, segments, size of the one body


def code(spec: str, x: np.ndarray, seed: int = 0, shape: tuple[int, ...] | None = None) -> tuple[int, np.ndarray]:
    """Return the body's bytes and the decoded vector."""
    shape = shape or x.shape
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.of(x.dtype), shape=shape)])
    codec = load_codec(spec)
    data = encode_payload(schema, {"w": x.reshape(shape)}, codec, seed=seed)
    return len(data) - HEADER - len(codec.spec), decode_payload(data, schema)["w"].reshape(x.shape)


@given(st.integers(1, 16), st.integers(1, 300), st.integers(0, 2**32))
def test_packing_and_unpacking_returns_the_numbers(width: int, count: int, seed: int) -> None:
    kind = np.uint8 if width <= 8 else np.uint16
    codes = np.random.default_rng(seed).integers(0, 1 << width, count).astype(kind)
    packed = pack(codes, width)
    assert len(packed) == packed_bytes(count, width)
    np.testing.assert_array_equal(unpack(np.frombuffer(packed, np.uint8), width, count), codes)


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        ("identity", 32 * 65536),
        ("rand_k:1000", 64 + 32 + 32 * 1000),
        ("top_k:1000", 32 + (16 + 32) * 1000),
        ("natural", 9 * 65536),
        ("dithering:8,2", 32 + 5 * 65536),
        ("qsgd:1", 32 + 2 * 65536),
        ("qsgd:16", 32 + 6 * 65536),
        ("terngrad", 32 + 2 * 65536),
        ("natural_dithering:8,2", 32 + 5 * 65536),
        ("stc:1000", 32 + 32 + (16 + 1) * 1000),
        ("eden:1", 64 + 32 + 65536),
        ("eden:4", 64 + 32 + 4 * 65536),
        ("float16", 16 * 65536),
        ("bfloat16", 16 * 65536),
        ("int8:4096", 8 * 65536 + 32 * 16),
    ],
)
def test_the_bits_that_travel_are_those_of_the_formula(spec: str, bits: int) -> None:
    x = np.random.default_rng(0).standard_normal(65536).astype(np.float32)
    assert 8 * code(spec, x)[0] == bits


def test_powersgd_sends_both_factors_and_vectors_raw() -> None:
    x = np.random.default_rng(0).standard_normal((100, 50)).astype(np.float32)
    assert code("powersgd:3", x)[0] == 4 * 3 * (100 + 50)
    assert code("powersgd:3", x.reshape(-1))[0] == 4 * 5000


@pytest.mark.parametrize(
    ("spec", "elements", "omega"),
    [
        ("rand_k:0.1", 1000, 9.0),
        ("rand_k:10", 10, 0.0),
        ("bernoulli:0.8", 5, 0.25),
        ("natural", 5, 0.125),
        ("qsgd:1", 100, 10.0),
        ("qsgd:100", 100, 0.01),
        ("terngrad", 100, 4.5),
        ("dithering:1,inf", 100, 4.5),
        ("natural_dithering:1,2", 100, 0.125 + 10.0),
        ("natural_dithering:8,2", 100, 0.125 + (10 * 2.0**-7) ** 2),
        ("identity", 7, 0.0),
        ("top_k:1", 7, math.inf),
    ],
)
def test_omega_is_that_of_the_table(spec: str, elements: int, omega: float) -> None:
    assert load_codec(spec).omega(elements) == pytest.approx(omega)


def test_terngrad_reaches_its_omega_on_the_worst_vector() -> None:
    d = 101
    x = np.full(d, 1 / (math.sqrt(d) + 1))
    x[0] = 1.0
    errors = [np.square(code("terngrad", x, seed)[1] - x).sum() / np.square(x).sum() for seed in range(4000)]
    assert np.mean(errors) == pytest.approx((math.sqrt(d) - 1) / 2, rel=0.02)


@given(st.integers(0, 2**64 - 1), st.integers(0, 500), st.integers(1, 65536), st.data())
def test_positions_are_distinct_inside_and_as_many_as_asked(
    seed: int, block: int, size: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, size))
    positions = draw_positions(seed, block, size, count)
    assert positions.size == count
    assert (np.diff(positions) > 0).all()
    assert not count or (positions[0] >= 0 and positions[-1] < size)


def test_positions_of_a_known_seed_never_change() -> None:
    # Sites and servers of different releases draw them; another answer would decode to another vector.
    assert draw_positions(1, 0, 1000, 5).tolist() == [354, 438, 559, 635, 735]


@pytest.mark.parametrize("k", [2, 7])
def test_rand_k_takes_every_coordinate_equally_often(k: int) -> None:
    draws, d = 6000, 10
    hits = np.zeros(d)
    for seed in range(draws):
        hits[draw_positions(seed, 3, d, k)] += 1
    expected = draws * k / d
    assert (np.abs(hits - expected) < 5 * math.sqrt(expected * (1 - k / d))).all()


def test_rand_k_counts_follow_the_share_of_each_block() -> None:
    x = np.ones(65536 + 6554, np.float32)
    last = [np.count_nonzero(code("rand_k:1100", x, seed)[1][65536:]) for seed in range(60)]
    assert np.mean(last) == pytest.approx(100, abs=5 * math.sqrt(100 / 60))


def test_top_k_keeps_the_largest_and_of_equals_the_first() -> None:
    x = np.array([1, -3, 2, 2, -2, 0.5], np.float32)
    np.testing.assert_array_equal(code("top_k:3", x)[1], [0, -3, 2, 2, 0, 0])


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=50), st.integers(1, 50))
def test_top_k_is_a_stable_sort_by_magnitude(values: list[int], k: int) -> None:
    x = np.array(values, np.float64)
    expected = np.zeros_like(x)
    order = sorted(range(x.size), key=lambda j: (-abs(x[j]), j))[:k]
    expected[order] = x[order]
    np.testing.assert_array_equal(code(f"top_k:{k}", x)[1], expected)


def test_top_k_of_doubles_is_exact_down_to_the_smallest() -> None:
    x = np.array([1e-300, 1.0 + 2.0**-50, -1e-30, 0.0])
    np.testing.assert_array_equal(code("top_k:3", x)[1], x)


def test_stc_sends_sign_times_mean_magnitude() -> None:
    x = np.array([1, -3, 2, 0.1], np.float32)
    np.testing.assert_array_equal(code("stc:2", x)[1], [0, -2.5, 2.5, 0])


def test_natural_keeps_powers_of_two_and_never_makes_infinity() -> None:
    powers = np.array([1, -2, 0.5, 2.0**-126, 0, 2.0**127, -(2.0**-149)], np.float32)
    for seed in range(50):
        decoded = code("natural", powers, seed)[1]
        np.testing.assert_array_equal(decoded[:6], powers[:6])
        assert code("natural", np.array([3.4e38], np.float32), seed)[1] == 2.0**127


def test_natural_is_unbiased_for_subnormal_numbers() -> None:
    x = np.array([2.0**-127], np.float32)
    draws = np.array([code("natural", x, seed)[1][0] for seed in range(4000)], np.float64)
    assert set(draws) <= {0.0, 2.0**-126}
    assert draws.mean() == pytest.approx(2.0**-127, rel=5 / math.sqrt(4000))


def test_dithering_returns_multiples_of_the_norm_over_s() -> None:
    x = np.array([3, -4, 0, 1e-3], np.float32)
    levels = code("qsgd:4", x)[1] * 4 / np.float32(math.sqrt(25 + 1e-6))
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-5)
    assert levels[2] == 0


def test_natural_dithering_returns_powers_of_two_times_the_norm() -> None:
    x = np.array([0.3, -0.7, 1.0, 0.01], np.float32)
    decoded = np.array([code("natural_dithering:4,inf", x, seed)[1] for seed in range(200)])
    assert set(np.unique(np.abs(decoded))) <= {0.0, 0.125, 0.25, 0.5, 1.0}
    assert (decoded[:, 2] == 1.0).all()
    assert set(np.unique(decoded[:, 0])) == {0.25, 0.5}
    assert set(np.unique(decoded[:, 3])) <= {0.0, 0.125}


def test_half_rounds_as_numpy_does_and_refuses_what_it_cannot_hold() -> None:
    x = np.array([1.0001, -65504, 6e-8, 1e-9], np.float32)
    np.testing.assert_array_equal(code("float16", x)[1], x.astype(np.float16).astype(np.float32))
    with pytest.raises(ValueError, match="beyond float16's 65504"):
        code("float16", np.array([65505], np.float32))


def test_half_is_unbiased_below_its_normal_range() -> None:
    x = np.array([2.0**-26, -3 * 2.0**-25], np.float32)
    draws = np.array([code("float16:stochastic", x, seed)[1] for seed in range(6000)], np.float64)
    spread = draws.std(axis=0) / math.sqrt(6000)
    assert (np.abs(draws.mean(axis=0) - x) < 5 * spread).all()


def test_brain_rounds_as_ml_dtypes_does() -> None:
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    np.testing.assert_array_equal(code("bfloat16", x)[1], x.astype(DType.BFLOAT16.numpy).astype(np.float32))


def test_int8_is_exact_on_whole_multiples_of_its_scale() -> None:
    x = np.array([127, -127, 5, 0, -1], np.float32)
    np.testing.assert_array_equal(code("int8:8", x)[1], x)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden_centroids_are_the_best_quantiser_of_the_normal_law(bits: int) -> None:
    z = (np.arange(2_000_000) + 0.5) * 5e-6  # midpoints of |z| up to 10
    density = np.exp(-z * z / 2) * math.sqrt(2 / math.pi) * 5e-6
    table = np.array(CENTROIDS[bits])
    level = np.searchsorted((table[1:] + table[:-1]) / 2, z)
    for index, centroid in enumerate(table):
        cell = level == index
        assert (z[cell] * density[cell]).sum() / density[cell].sum() == pytest.approx(centroid, rel=2e-4)
    assert (np.square(z - table[level]) * density).sum() == pytest.approx(DISTORTION[bits], rel=2e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [4096, 5000])
def test_eden_is_nearly_unbiased_with_the_error_it_claims(bits: int, size: int) -> None:
    x, draws = np.random.default_rng(1).exponential(size=size), 200
    decoded = np.array([code(f"eden:{bits}", x, seed)[1] for seed in range(draws)])
    squared = np.square(x).sum()
    # 5000 elements are padded to 8192: the zeros are known, so the error is spread over more than is counted.
    omega = load_codec(f"eden:{bits}").omega(size) * size / (1 << (size - 1).bit_length())
    assert np.square(decoded - x).sum(axis=1).mean() / squared == pytest.approx(omega, rel=0.05)
    assert np.square(decoded.mean(axis=0) - x).sum() / squared < 1.5 * omega / draws + 1e-6


def test_drive_is_eden_with_one_bit() -> None:
    assert load_codec("drive") == load_codec("eden:1")


def test_powersgd_returns_a_matrix_of_low_rank_as_it_was() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 4, 10)).reshape(3, 40)
    np.testing.assert_allclose(code("powersgd:3", matrix, shape=(60, 4, 10))[1], matrix, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(code("powersgd:5", matrix, shape=(60, 40))[1], matrix, rtol=1e-9, atol=1e-12)


def test_powersgd_decodes_rows_wider_than_a_block() -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((5, 1)) @ rng.standard_normal((1, 100_000))).astype(np.float32)
    np.testing.assert_allclose(code("powersgd:1", matrix)[1], matrix, rtol=1e-3, atol=1e-5)


def test_dgc_sends_about_k_of_a_long_vector_and_never_more() -> None:
    x = np.random.default_rng(0).standard_normal(500_000).astype(np.float32)
    for seed in range(5):
        decoded = code("dgc:0.01", x, seed)[1]
        sent = np.flatnonzero(decoded)
        assert 3500 <= sent.size <= 5000
        np.testing.assert_array_equal(decoded[sent], x[sent])
        assert np.abs(x[sent]).min() >= np.abs(np.delete(x, sent)).max()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("rand-k:0.1", r"no codec 'rand-k' here, only .*; did you mean 'rand_k'\?"),
        ("rand_k", "got 0 arguments; write it as rand_k:SHARE_OR_COUNT"),
        ("rand_k:2.5", "a count must be a whole number"),
        ("top_k:0", "above 0"),
        ("top_k:nan", "above 0"),
        ("qsgd:0", "whole number from 1"),
        ("bernoulli:1.1", "at most 1"),
        ("dithering:4,0.5", "norm must be 1 or more"),
        ("int8:100", "power of two"),
        ("float16:round", "float16"),
        ("natural:1", "got 1 arguments"),
        ("powersgd:x", "rank must be a whole number"),
    ],
)
def test_a_specification_that_means_nothing_is_refused_with_the_reason(spec: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        load_codec(spec)


def test_names_are_sorted_and_hold_ours() -> None:
    names = codec_names()
    assert names == sorted(names)
    assert {"identity", "rand_k", "top_k", "powersgd"} <= set(names)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float16_is_ieees_to_the_bit_for_every_half_and_what_lies_between(dtype: type[np.floating[Any]]) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(dtype)  # every finite one, from 0 on
    middles = (halves[:-1] + halves[1:]) / 2  # ties
    around = np.random.default_rng(0).normal(size=50_000) * 10.0 ** np.random.default_rng(1).uniform(-9, 4, size=50_000)
    x = np.concatenate([halves, middles, np.nextafter(middles, np.inf), np.clip(around, -65504, 65504)]).astype(dtype)
    x = np.concatenate([x, -x])
    body, expected = load_codec("float16").encode(x, 0, [x.shape]), x.astype("<f2")
    assert bytes(body) == expected.tobytes()
    decoder = load_codec("float16").decoder(BytesSource(body), x.size, x.dtype, [x.shape])
    for block, start in enumerate(range(0, x.size, BLOCK_ELEMENTS)):
        out = np.empty(min(BLOCK_ELEMENTS, x.size - start), dtype)
        decoder.read(block, out)
        np.testing.assert_array_equal(out, expected[start : start + out.size].astype(dtype))
