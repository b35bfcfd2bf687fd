"""One pass tells whether every float is finite, and their norm, however the pieces are cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.tensors import DType, NotFiniteError, TensorScan, TensorSchema, TensorSpec, pack
from federation.tensors.scan import norm_of

FLOATS = [dtype for dtype in DType if dtype.is_float]
SCHEMA = TensorSchema.of(
    [TensorSpec(name=dtype.value, dtype=dtype, shape=(37,)) for dtype in DType]
    + [TensorSpec(name="empty", dtype=DType.FLOAT32, shape=(0,))]
)


def whole(seed: int = 0) -> tuple[bytearray, float]:
    random = np.random.default_rng(seed)
    arrays = {
        spec.name: (random.standard_normal(spec.shape) * 9).astype(np.int8).astype(spec.dtype.numpy) for spec in SCHEMA
    }
    floats = [arrays[spec.name].astype(np.float64) for spec in SCHEMA if spec.dtype.is_float]
    return pack(SCHEMA, arrays), math.sqrt(sum(float(np.sum(array**2)) for array in floats))


@given(st.lists(st.integers(1, 200), max_size=20), st.integers(0, 3))
def test_norm_is_that_of_all_floats_wherever_the_pieces_are_cut(cuts: list[int], seed: int) -> None:
    buffer, norm = whole(seed)
    scan = TensorScan(SCHEMA)
    left = memoryview(buffer)
    for cut in [*cuts, len(buffer)]:
        scan.feed(left[:cut])
        left = left[cut:]
    scan.finish()
    assert scan.norm == pytest.approx(norm, rel=1e-12)
    assert scan.position == SCHEMA.nbytes


@pytest.mark.parametrize("elements", [0, 1, 300, 20_000])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.value)
def test_the_norm_of_a_whole_buffer_is_to_the_bit_that_of_a_scan(dtype: DType, elements: int) -> None:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=dtype, shape=(elements,))])
    buffer = pack(schema, {"w": np.random.default_rng(1).standard_normal(elements).astype(dtype.numpy)})
    scan = TensorScan(schema)
    scan.feed(buffer)
    assert norm_of(schema, buffer) == scan.norm
    with pytest.raises(ValueError, match="bytes"):
        norm_of(schema, bytes(buffer) + b"\0")
    for bad in (math.nan, 1e200 if dtype is DType.FLOAT64 else math.inf):
        with pytest.raises(NotFiniteError, match="w"):
            norm_of(
                TensorSchema.of([TensorSpec(name="w", dtype=dtype, shape=(2,))]), np.full(2, bad, dtype.numpy).tobytes()
            )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("place", [0, 19_999])
def test_finds_one_bad_number_among_many_and_names_its_tensor(dtype: DType, bad: float, place: int) -> None:
    schema = TensorSchema.of(
        [
            TensorSpec(name="first", dtype=dtype, shape=(5,)),
            TensorSpec(name="second", dtype=dtype, shape=(20_000,)),
        ]
    )
    second = np.ones(20_000, dtype=dtype.numpy)
    second[place] = bad
    scan = TensorScan(schema)
    with pytest.raises(NotFiniteError, match="second") as caught:
        scan.feed(pack(schema, {"first": np.ones(5, dtype=dtype.numpy), "second": second}))
    assert caught.value.tensor == "second"


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.value)
def test_large_finite_numbers_are_finite_though_their_squares_overflow_float32(dtype: DType) -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=dtype, shape=(100,))])
    value = 60000.0 if dtype is DType.FLOAT16 else 1e38
    array = np.full(100, value, dtype=dtype.numpy)
    scan = TensorScan(schema)
    scan.feed(array.tobytes())
    assert scan.norm == pytest.approx(10 * float(array[0]), rel=1e-6)


@pytest.mark.parametrize(
    ("second", "text"),
    [
        pytest.param([1.0, 1e200], "too large", id="one whose square is beyond float64"),
        pytest.param([1e154] * 4, "too large", id="some whose squares together are"),
        pytest.param([*[1e154, *[0.0] * 8191] * 4], "too large", id="some in different blocks"),
        pytest.param([*[1e154, *[0.0] * 8191] * 4, 1.0], "too large", id="some in different blocks of many"),
        pytest.param([1.0, math.inf, 1e200], "not finite", id="infinity before one that is too large"),
        pytest.param([1e200, math.nan], "too large", id="one that is too large before NaN"),
    ],
)
def test_numbers_without_a_norm_are_refused_and_called_what_they_are(second: list[float], text: str) -> None:
    schema = TensorSchema.of(
        [
            TensorSpec(name="a", dtype=DType.FLOAT64, shape=(2,)),
            TensorSpec(name="b", dtype=DType.FLOAT64, shape=(len(second),)),
        ]
    )
    with pytest.raises(NotFiniteError, match=f"'b' .*{text}") as caught:
        TensorScan(schema).feed(np.array([1.0, 2.0, *second]).tobytes())
    assert caught.value.tensor == "b"


def test_numbers_whose_squares_just_add_up_have_a_norm() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT64, shape=(40_000,))])
    scan = TensorScan(schema)
    scan.feed(np.full(40_000, 5e151).tobytes())
    assert scan.norm == pytest.approx(1e154)


def test_integers_that_look_like_nan_are_no_concern() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.INT32, shape=(2,))])
    scan = TensorScan(schema)
    scan.feed(b"\xff" * 8)
    scan.finish()
    assert scan.norm == 0


def test_refuses_more_bytes_than_the_schema_has() -> None:
    scan = TensorScan(SCHEMA)
    with pytest.raises(ValueError, match="more than the schema"):
        scan.feed(bytes(SCHEMA.nbytes + 1))


def test_finish_refuses_a_buffer_that_was_not_seen_whole() -> None:
    scan = TensorScan(SCHEMA)
    scan.feed(bytes(SCHEMA.nbytes - 1))
    with pytest.raises(ValueError, match="were seen"):
        scan.finish()


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64], ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("shift", [1, 3])
def test_a_piece_that_lies_askew_in_memory_counts_to_the_bit_as_one_that_does_not(dtype: DType, shift: int) -> None:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=dtype, shape=(90_000,))])
    buffer = pack(schema, {"w": np.random.default_rng(0).standard_normal(90_000).astype(dtype.numpy)})
    askew = memoryview(bytes(shift) + buffer)[shift:]
    straight, shifted = TensorScan(schema), TensorScan(schema)
    straight.feed(buffer)
    shifted.feed(askew)
    assert shifted.squared_norm == straight.squared_norm
    spoiled = bytearray(bytes(shift) + buffer)
    spoiled[-dtype.itemsize :] = np.array(math.inf, dtype=dtype.numpy).tobytes()
    with pytest.raises(NotFiniteError):
        TensorScan(schema).feed(memoryview(spoiled)[shift:])
