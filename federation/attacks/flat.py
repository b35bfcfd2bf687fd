"""Updates as attacks see them: one float64 vector of a payload's flat buffer, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from federation.attacks.attack import Array
    from federation.tensors import TensorSchema


def flat_of(schema: TensorSchema, data: bytes | bytearray | memoryview) -> Array:
    """Return a flat buffer of float tensors as one vector of float64, in buffer order."""
    parts = [
        np.frombuffer(data, segment.dtype.numpy, segment.elements, segment.offset).astype(np.float64)
        for segment in schema.segments
    ]
    return np.concatenate(parts)


def buffer_of(schema: TensorSchema, flat: Array) -> bytearray:
    """Return the flat buffer of a vector, rounded to each tensor's dtype; what overflows becomes infinite."""
    data, start = bytearray(schema.nbytes), 0
    with np.errstate(over="ignore", invalid="ignore"):
        for segment in schema.segments:
            target = np.frombuffer(data, segment.dtype.numpy, segment.elements, segment.offset)
            target[...] = flat[start : start + segment.elements].astype(segment.dtype.numpy)
            start += segment.elements
    return data
