"""Tensor schemas on the wire. A schema that is not in canonical order, or not sound, is refused."""

from __future__ import annotations

from federation.errors import MalformedMessageError
from federation.names import Digest
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec
from federation.v1 import tensors_pb2

DIGEST_BYTES = 32

_DTYPES = {
    DType.FLOAT16: tensors_pb2.DTYPE_FLOAT16,
    DType.BFLOAT16: tensors_pb2.DTYPE_BFLOAT16,
    DType.FLOAT32: tensors_pb2.DTYPE_FLOAT32,
    DType.FLOAT64: tensors_pb2.DTYPE_FLOAT64,
    DType.INT8: tensors_pb2.DTYPE_INT8,
    DType.INT16: tensors_pb2.DTYPE_INT16,
    DType.INT32: tensors_pb2.DTYPE_INT32,
    DType.INT64: tensors_pb2.DTYPE_INT64,
    DType.UINT8: tensors_pb2.DTYPE_UINT8,
    DType.BOOL: tensors_pb2.DTYPE_BOOL,
}
_ROLES = {
    TensorRole.PARAMETER: tensors_pb2.TENSOR_ROLE_PARAMETER,
    TensorRole.BUFFER: tensors_pb2.TENSOR_ROLE_BUFFER,
    TensorRole.LOCAL: tensors_pb2.TENSOR_ROLE_LOCAL,
}
_FROM_DTYPE = {number: dtype for dtype, number in _DTYPES.items()}
_FROM_ROLE = {number: role for role, number in _ROLES.items()}


def schema_to_proto(schema: TensorSchema) -> tensors_pb2.TensorSchema:
    """Return a schema as a message."""
    return tensors_pb2.TensorSchema(
        tensors=[
            tensors_pb2.TensorSpec(name=spec.name, dtype=_DTYPES[spec.dtype], shape=spec.shape, role=_ROLES[spec.role])
            for spec in schema
        ]
    )


def schema_from_proto(message: tensors_pb2.TensorSchema) -> TensorSchema:
    """Read a schema.

    Raises:
        MalformedMessageError: a dtype or role is unknown, a name or shape not valid, or the order not canonical.
    """
    specs = []
    for tensor in message.tensors:
        if tensor.dtype not in _FROM_DTYPE or tensor.role not in _FROM_ROLE:
            raise MalformedMessageError(
                f"tensor {tensor.name[:80]!r} has dtype {tensor.dtype} and role {tensor.role}; one of them is not "
                "known to this release"
            )
        try:
            specs.append(
                TensorSpec(
                    name=tensor.name,
                    dtype=_FROM_DTYPE[tensor.dtype],
                    shape=tuple(tensor.shape),
                    role=_FROM_ROLE[tensor.role],
                )
            )
        except ValueError as error:
            raise MalformedMessageError(str(error)) from error
    try:
        schema = TensorSchema(tuple(specs))
    except ValueError as error:
        raise MalformedMessageError(f"schema is not valid: {error}") from error
    if schema.nbytes >= 1 << 63:
        raise MalformedMessageError(f"schema has {schema.nbytes} bytes, more than any file can hold")
    return schema


def check_digest(digest: bytes, what: str) -> Digest:
    """Return `digest` if it has the length of a SHA-256.

    Args:
        digest: bytes from a message.
        what: what it is of, for the error.

    Raises:
        MalformedMessageError: it has not.
    """
    if len(digest) != DIGEST_BYTES:
        raise MalformedMessageError(f"digest of {what} has {len(digest)} bytes, expected {DIGEST_BYTES}")
    return Digest(bytes(digest))
