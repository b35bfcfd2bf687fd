"""The layout of flat buffers is fixed by the schema alone."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
SPECS = st.builds(
    TensorSpec,
    name=NAMES,
    dtype=st.sampled_from(DType),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    role=st.sampled_from(TensorRole),
)
SCHEMAS = st.lists(SPECS, max_size=12, unique_by=lambda spec: spec.name)


def spec(name: str, dtype: DType = DType.FLOAT32, *shape: int, role: TensorRole = TensorRole.PARAMETER) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, role=role)


@given(SCHEMAS, st.randoms(use_true_random=False))
def test_layout_does_not_depend_on_the_order_specs_come_in(specs, random) -> None:
    shuffled = list(specs)
    random.shuffle(shuffled)
    one, other = TensorSchema.of(specs), TensorSchema.of(shuffled)
    assert one == other
    assert one.digest == other.digest
    assert one.offsets == other.offsets


@given(SCHEMAS)
def test_tensors_lie_without_gaps_aligned_to_their_item_size(specs) -> None:
    schema = TensorSchema.of(specs)
    position = 0
    for each in schema:
        assert schema.offsets[each.name] == position
        assert position % each.dtype.itemsize == 0
        position += math.prod(each.shape) * each.dtype.itemsize
    assert schema.nbytes == position


@given(SCHEMAS)
def test_segments_cover_every_byte_once_with_one_run_per_dtype(specs) -> None:
    schema = TensorSchema.of(specs)
    position = 0
    for segment in schema.segments:
        assert segment.offset == position
        assert segment.elements > 0
        position += segment.nbytes
    assert position == schema.nbytes
    dtypes = [segment.dtype for segment in schema.segments]
    assert len(dtypes) == len(set(dtypes))
    assert sum(segment.elements for segment in schema.segments) == schema.elements


@given(SCHEMAS)
def test_roles_divide_a_schema(specs) -> None:
    schema = TensorSchema.of(specs)
    parts = [*schema.parameters, *schema.buffers, *schema.local]
    assert sorted(each.name for each in parts) == sorted(each.name for each in schema)
    assert TensorSchema.of([*schema.parameters, *schema.buffers]) == schema.federated


@given(SCHEMAS, SCHEMAS)
def test_digests_are_equal_exactly_for_equal_schemas(first, second) -> None:
    one, other = TensorSchema.of(first), TensorSchema.of(second)
    assert (one.digest == other.digest) == (one == other)


def test_digest_is_pinned_because_peers_of_other_releases_compute_it_too() -> None:
    schema = TensorSchema.of([spec("w", DType.FLOAT32, 2, 3), spec("n", DType.INT64, role=TensorRole.BUFFER)])
    assert schema.digest.hex() == "5f6fd14408dc3c3df33c4cc37551f2b6ac629dccf4d813b03bd8c97aed10abe5"


def test_a_scalar_has_one_element_and_an_empty_tensor_none() -> None:
    assert spec("a").elements == 1
    assert spec("a", DType.FLOAT32, 3, 0).nbytes == 0


def test_rejects_two_tensors_of_one_name() -> None:
    with pytest.raises(ValueError, match="unique"):
        TensorSchema.of([spec("a"), spec("a", DType.FLOAT64)])


def test_rejects_an_order_that_is_not_canonical() -> None:
    with pytest.raises(ValueError, match="canonical"):
        TensorSchema((spec("b"), spec("a")))


@pytest.mark.parametrize("name", ["", "x" * 257, "é" * 129, "a\x00b"], ids=["empty", "long", "long-utf8", "nul"])
def test_rejects_names_that_are_empty_too_long_or_hold_nul(name: str) -> None:
    with pytest.raises(ValueError, match="tensor name"):
        spec(name)


@pytest.mark.parametrize("shape", [(-1,), (1,) * 33], ids=["negative", "rank"])
def test_rejects_shapes_that_are_negative_or_of_too_many_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        spec("a", DType.FLOAT32, *shape)


def test_rejects_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.tensors.schema.MAX_TENSORS", 2)
    with pytest.raises(ValueError, match="more than the 2"):
        TensorSchema.of([spec("a"), spec("b"), spec("c")])


@pytest.mark.parametrize("dtype", DType, ids=lambda dtype: dtype.value)
def test_every_dtype_is_found_from_its_numpy_dtype_and_little_endian(dtype: DType) -> None:
    assert DType.of(dtype.numpy) is dtype
    assert dtype.numpy.itemsize == dtype.itemsize
    assert np.dtype(dtype.numpy).byteorder in "<|="


def test_rejects_a_dtype_that_cannot_be_federated() -> None:
    with pytest.raises(ValueError, match="complex64"):
        DType.of(np.dtype(np.complex64))


def test_only_floats_are_averaged() -> None:
    floats = {dtype for dtype in DType if dtype.is_float}
    assert floats == {DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64}
    assert DType.BFLOAT16.numpy == ml_dtypes.bfloat16


def test_membership_and_lookup_go_by_name() -> None:
    schema = TensorSchema.of([spec("a"), spec("b")])
    assert "a" in schema
    assert "c" not in schema
    assert schema["b"].name == "b"
    assert len(schema) == 2


def test_more_than_4_gib_of_elements_keep_exact_offsets() -> None:
    schema = TensorSchema.of([spec("a", DType.FLOAT32, 3 << 30), spec("b", DType.FLOAT32, 1)])
    assert schema.offsets["b"] == 12 << 30
