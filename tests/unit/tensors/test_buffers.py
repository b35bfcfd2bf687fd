"""Between arrays and flat buffers nothing is lost, and nothing is copied that need not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.tensors import DType, TensorSchema, TensorSpec, pack, unpack, write_into

SCHEMAS = st.lists(
    st.builds(
        TensorSpec,
        name=st.sampled_from("abcdefgh"),
        dtype=st.sampled_from(DType),
        shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    ),
    max_size=6,
    unique_by=lambda spec: spec.name,
).map(TensorSchema.of)


def arrays_of(schema: TensorSchema, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {
        spec.name: (random.standard_normal(spec.shape) * 50).astype(np.int8).astype(spec.dtype.numpy) for spec in schema
    }


@given(SCHEMAS, st.integers(0, 5))
def test_unpack_undoes_pack(schema: TensorSchema, seed: int) -> None:
    arrays = arrays_of(schema, seed)
    buffer = pack(schema, arrays)
    assert len(buffer) == schema.nbytes
    found = unpack(schema, buffer)
    assert list(found) == [spec.name for spec in schema]
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_unpacked_arrays_share_memory_with_the_buffer() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT32, shape=(2,))])
    buffer = bytearray(8)
    unpack(schema, buffer)["a"][1] = 1.0
    assert buffer == np.array([0, 1], dtype=np.float32).tobytes()
    assert not unpack(schema, bytes(8))["a"].flags.writeable


def test_rejects_a_buffer_of_another_size() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT32, shape=(2,))])
    with pytest.raises(ValueError, match="7 bytes, its schema needs 8"):
        unpack(schema, bytes(7))


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "missing"),
        ({"a": np.zeros(3, np.float32)}, r"float32\[3\], expected float32\[2\]"),
        ({"a": np.zeros(2, np.float64)}, r"float64\[2\], expected float32\[2\]"),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_rejects_arrays_that_are_not_what_the_schema_says(arrays: dict[str, Any], text: str) -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT32, shape=(2,))])
    with pytest.raises(ValueError, match=text):
        pack(schema, arrays)


def test_packs_arrays_that_are_not_contiguous_in_c_order() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT32, shape=(3, 2))])
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2))
    assert pack(schema, {"a": array}) == array.tobytes(order="C")


def test_packs_big_endian_arrays_as_little_endian() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.INT32, shape=(1,))])
    assert pack(schema, {"a": np.array([1], dtype=">i4")}) == b"\x01\0\0\0"


def test_writes_into_a_given_buffer_and_ignores_other_arrays() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.UINT8, shape=(2,))])
    buffer = bytearray(2)
    write_into(schema, {"a": np.array([1, 2], np.uint8), "other": np.zeros(9)}, buffer)
    assert buffer == b"\x01\x02"
