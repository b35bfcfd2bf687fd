"""Tensors as data: schemas, flat buffers, dtypes. Pure; the only door to ml_dtypes (bfloat16).

Start with `TensorSchema`: it fixes names, dtypes, shapes and the layout of the flat buffer that travels, is spooled and
is checkpointed. `pack` and `unpack` go between that buffer and NumPy arrays.
"""

from federation.tensors.buffers import pack, unpack, write_into
from federation.tensors.scan import NotFiniteError, TensorScan
from federation.tensors.schema import DType, Segment, TensorRole, TensorSchema, TensorSpec

__all__ = [
    "DType",
    "NotFiniteError",
    "Segment",
    "TensorRole",
    "TensorScan",
    "TensorSchema",
    "TensorSpec",
    "pack",
    "unpack",
    "write_into",
]
