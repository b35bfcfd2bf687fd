"""What a set of tensors is: names, dtypes, shapes, roles, and where each lies in a flat buffer.

The layout is fixed by the schema alone. Tensors lie one after another without gaps, in canonical order (descending item
size, then dtype, then name), C order, little-endian; so each is aligned to its item size, and equal dtypes are
neighbours: a whole model is a handful of `Segment` runs that an aggregation rule can walk tile by tile.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from federation.names import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MAX_TENSORS = 8_000
"""Keeps a schema of the longest names below the limits of messages and manifests."""
MAX_BYTES = 1 << 42
"""Largest flat buffer, 4 TiB: a claimed shape may not make a receiver allocate without end."""
MAX_NAME_BYTES = 256
MAX_RANK = 32


class DType(Enum):
    """Element types that are preserved from site to server and back."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    BOOL = "bool"

    @cached_property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype, little-endian."""
        if self is DType.BFLOAT16:
            bfloat16: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        native: np.dtype[np.generic] = np.dtype(self.value)
        return native.newbyteorder("<")

    @cached_property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @cached_property
    def is_float(self) -> bool:
        """True for types that are averaged; others are combined by maximum."""
        return self in (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64)

    @property
    def widened(self) -> DType:
        """FLOAT32 for half precision, which is too little for what is added up over rounds; else the type itself."""
        return DType.FLOAT32 if self in (DType.FLOAT16, DType.BFLOAT16) else self

    @classmethod
    def of(cls, dtype: np.dtype[np.generic]) -> DType:
        """Return the member for a NumPy dtype.

        Raises:
            ValueError: the dtype is not one of ours.
        """
        try:
            return cls(dtype.name)
        except ValueError:
            allowed = ", ".join(member.value for member in cls)
            raise ValueError(f"dtype {dtype.name!r} cannot be federated; use one of {allowed}") from None


class TensorRole(Enum):
    """What a tensor is to the experiment.

    PARAMETER: trained and federated; sites send its change. BUFFER: federated, not trained (batch-norm statistics,
    counters); sites send its value, floats are averaged and integers combined by maximum. LOCAL: delivered once with
    the initial model and never uploaded (a frozen backbone, a local head).
    """

    PARAMETER = "parameter"
    BUFFER = "buffer"
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor: `name` (unique, 1 to 256 bytes of UTF-8), `dtype`, `shape` (outermost first), `role`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    role: TensorRole = TensorRole.PARAMETER

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= MAX_NAME_BYTES or "\x00" in self.name:
            raise ValueError(f"tensor name must have 1 to {MAX_NAME_BYTES} bytes, got {self.name[:80]!r}")
        if len(self.shape) > MAX_RANK or any(size < 0 for size in self.shape):
            raise ValueError(f"tensor {self.name!r} has shape {self.shape}; at most {MAX_RANK} sizes of 0 or more")

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the flat buffer."""
        return self.elements * self.dtype.itemsize

    @property
    def _order(self) -> tuple[int, str, str]:
        return (-self.dtype.itemsize, self.dtype.value, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of elements of one dtype in a flat buffer: `offset` in bytes, `elements` in number."""

    dtype: DType
    offset: int
    elements: int

    @property
    def nbytes(self) -> int:
        """Bytes of the run."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class TensorSchema:
    """An ordered set of tensors and the layout of their flat buffer.

    Build one with `TensorSchema.of`, which sorts; the constructor takes canonical order only, so that equal sets have
    equal schemas, digests and buffers.

    Attributes:
        specs: the tensors in canonical order.

    Raises:
        ValueError: order, names or numbers are not right.
    """

    specs: tuple[TensorSpec, ...]
    _by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if len(self.specs) > MAX_TENSORS:
            raise ValueError(f"{len(self.specs)} tensors are more than the {MAX_TENSORS} a schema may hold")
        by_name = {spec.name: spec for spec in self.specs}
        if len(by_name) != len(self.specs):
            raise ValueError("tensor names must be unique")
        if sum(spec.nbytes for spec in self.specs) > MAX_BYTES:
            raise ValueError(f"tensors have more than {MAX_BYTES} bytes together")
        orders = [spec._order for spec in self.specs]
        if orders != sorted(orders):
            raise ValueError("tensors are not in canonical order (descending item size, dtype, name)")
        object.__setattr__(self, "_by_name", by_name)

    @classmethod
    def of(cls, specs: Iterable[TensorSpec]) -> TensorSchema:
        """Return the schema of `specs` in canonical order."""
        return cls(tuple(sorted(specs, key=lambda spec: spec._order)))

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> TensorSpec:
        return self._by_name[name]

    @cached_property
    def nbytes(self) -> int:
        """Size of the flat buffer, bytes."""
        return sum(spec.nbytes for spec in self.specs)

    @cached_property
    def elements(self) -> int:
        """Number of elements of all tensors."""
        return sum(spec.elements for spec in self.specs)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Byte offset of each tensor in the flat buffer."""
        offsets: dict[str, int] = {}
        position = 0
        for spec in self.specs:
            offsets[spec.name] = position
            position += spec.nbytes
        return offsets

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Maximal runs of one dtype, in buffer order; empty runs are left out."""
        segments: list[Segment] = []
        for spec in self.specs:
            if not spec.elements:
                continue
            if segments and segments[-1].dtype is spec.dtype:
                last = segments[-1]
                segments[-1] = Segment(dtype=last.dtype, offset=last.offset, elements=last.elements + spec.elements)
            else:
                segments.append(Segment(dtype=spec.dtype, offset=self.offsets[spec.name], elements=spec.elements))
        return tuple(segments)

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 of the canonical JSON form: equal exactly for equal schemas."""
        rows = [[spec.name, spec.dtype.value, list(spec.shape), spec.role.value] for spec in self.specs]
        return Digest(hashlib.sha256(json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode()).digest())

    def select(self, keep: Callable[[TensorSpec], bool]) -> TensorSchema:
        """Return the schema of the tensors for which `keep` is true."""
        return TensorSchema(tuple(spec for spec in self.specs if keep(spec)))

    @cached_property
    def parameters(self) -> TensorSchema:
        """The tensors with role PARAMETER: the schema of payload ``delta``."""
        return self.select(lambda spec: spec.role is TensorRole.PARAMETER)

    @cached_property
    def widened(self) -> TensorSchema:
        """The same tensors, float32 where they are half precision, in canonical order: what methods keep of them."""
        if all(spec.dtype.widened is spec.dtype for spec in self.specs):
            return self
        return TensorSchema.of(replace(spec, dtype=spec.dtype.widened) for spec in self.specs)

    @cached_property
    def buffers(self) -> TensorSchema:
        """The tensors with role BUFFER: the schema of payload ``buffers``."""
        return self.select(lambda spec: spec.role is TensorRole.BUFFER)

    @cached_property
    def federated(self) -> TensorSchema:
        """Parameters and buffers together: the schema of payload ``model``."""
        return self.select(lambda spec: spec.role is not TensorRole.LOCAL)

    @cached_property
    def local(self) -> TensorSchema:
        """The tensors with role LOCAL: the schema of payload ``base``."""
        return self.select(lambda spec: spec.role is TensorRole.LOCAL)
