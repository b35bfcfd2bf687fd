"""Schemas on the wire: back as they went, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import MalformedMessageError
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec
from federation.v1 import tensors_pb2
from federation.wire.schemas import check_digest, schema_from_proto, schema_to_proto

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMAS = st.lists(
    st.builds(
        TensorSpec,
        name=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8),
        dtype=st.sampled_from(DType),
        shape=st.lists(st.integers(0, 1 << 18), max_size=2).map(tuple),
        role=st.sampled_from(TensorRole),
    ),
    max_size=8,
    unique_by=lambda spec: spec.name,
).map(TensorSchema.of)


@given(SCHEMAS)
def test_a_schema_comes_back_as_it_went(schema: TensorSchema) -> None:
    message = tensors_pb2.TensorSchema.FromString(schema_to_proto(schema).SerializeToString())
    assert schema_from_proto(message) == schema


def good() -> tensors_pb2.TensorSchema:
    return schema_to_proto(
        TensorSchema.of(
            [TensorSpec(name="a", dtype=DType.FLOAT32, shape=(2,)), TensorSpec(name="b", dtype=DType.FLOAT32, shape=())]
        )
    )


def swap(message: tensors_pb2.TensorSchema) -> None:
    message.tensors.reverse()


def repeat(message: tensors_pb2.TensorSchema) -> None:
    message.tensors[1].name = "a"


def unknown_dtype(message: tensors_pb2.TensorSchema) -> None:
    message.tensors[0].dtype = 99


def unset_dtype(message: tensors_pb2.TensorSchema) -> None:
    message.tensors[0].dtype = 0


def unset_role(message: tensors_pb2.TensorSchema) -> None:
    message.tensors[0].role = 0


def unnamed(message: tensors_pb2.TensorSchema) -> None:
    message.tensors[0].name = ""


def too_many_dimensions(message: tensors_pb2.TensorSchema) -> None:
    message.tensors[0].shape.extend([1] * 40)


def absurdly_large(message: tensors_pb2.TensorSchema) -> None:
    message.tensors[0].shape.extend([2**64 - 1, 2**64 - 1])


@pytest.mark.parametrize(
    "spoil",
    [swap, repeat, unknown_dtype, unset_dtype, unset_role, unnamed, too_many_dimensions, absurdly_large],
    ids=lambda spoil: spoil.__name__,
)
def test_a_schema_that_is_not_sound_is_refused(spoil: Callable[[tensors_pb2.TensorSchema], None]) -> None:
    message = good()
    spoil(message)
    with pytest.raises(MalformedMessageError):
        schema_from_proto(message)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_digest_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(MalformedMessageError, match=f"digest of the model has {length} bytes"):
        check_digest(bytes(length), "the model")


def test_a_digest_is_kept() -> None:
    assert check_digest(b"x" * 32, "it") == b"x" * 32
