"""Between NumPy arrays and the flat buffer of a schema. No copy on the way out, one on the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.tensors.schema import TensorSchema

Array = npt.NDArray[Any]


def unpack(schema: TensorSchema, buffer: bytes | bytearray | memoryview) -> dict[str, Array]:
    """Return views of each tensor in a flat buffer.

    Args:
        schema: layout of the buffer.
        buffer: exactly ``schema.nbytes`` bytes.

    Returns:
        One array per tensor, in schema order, sharing memory with `buffer` (read-only if it is).

    Raises:
        ValueError: the buffer has another size.
    """
    view = memoryview(buffer).cast("B")
    if view.nbytes != schema.nbytes:
        raise ValueError(f"flat buffer has {view.nbytes} bytes, its schema needs {schema.nbytes}")
    arrays: dict[str, Array] = {}
    for spec in schema:
        offset = schema.offsets[spec.name]
        flat = np.frombuffer(view[offset : offset + spec.nbytes], dtype=spec.dtype.numpy)
        arrays[spec.name] = flat.reshape(spec.shape)
    return arrays


def write_into(schema: TensorSchema, arrays: Mapping[str, Array], buffer: bytearray | memoryview) -> None:
    """Copy each tensor of the schema into its place in `buffer`; other arrays are ignored.

    Raises:
        ValueError: a tensor is missing, or has another dtype or shape than its spec.
    """
    for name, target in unpack(schema, buffer).items():
        spec = schema[name]
        if name not in arrays:
            raise ValueError(f"tensor {name!r} of the schema is missing")
        source = arrays[name]
        if source.shape != spec.shape or source.dtype.name != spec.dtype.value:
            raise ValueError(
                f"tensor {name!r} is {source.dtype.name}{list(source.shape)}, "
                f"expected {spec.dtype.value}{list(spec.shape)}"
            )
        target[...] = source


def pack(schema: TensorSchema, arrays: Mapping[str, Array]) -> bytearray:
    """Return the flat buffer of `arrays`, which the caller owns.

    Raises:
        ValueError: as `write_into`.
    """
    buffer = bytearray(schema.nbytes)
    write_into(schema, arrays, buffer)
    return buffer
