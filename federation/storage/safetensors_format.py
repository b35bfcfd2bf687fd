"""The safetensors container: its header, and nothing of its data.

Layout (github.com/huggingface/safetensors, "Format"): 8 bytes little-endian header size, the header as a JSON
object padded with spaces, then the data section. Each entry is ``name: {dtype, shape, data_offsets: [begin, end]}``
with offsets into the data section; ``__metadata__`` maps strings to strings.

We write containers ourselves because the library must hold all tensors in memory to write a file, and the server holds
none. We read headers ourselves for the same reason, with its rules: no gap, no overlap, nothing beyond the file's end.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEADER_BYTES = 64 << 20
"""100 000 tensors with names of 256 bytes and roles need about half of it."""
ALIGNMENT = 4096
"""The data section begins at a multiple of it: whole pages, and room for the metadata to change in place."""
ROLES_KEY = "federation.roles"
DIGEST_KEY = "federation.schema"

_CODES = {
    DType.FLOAT16: "F16",
    DType.BFLOAT16: "BF16",
    DType.FLOAT32: "F32",
    DType.FLOAT64: "F64",
    DType.INT8: "I8",
    DType.INT16: "I16",
    DType.INT32: "I32",
    DType.INT64: "I64",
    DType.UINT8: "U8",
    DType.BOOL: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a container holds.

    Attributes:
        specs: its tensors in the order they lie in.
        offsets: first byte of each tensor in the data section, by name.
        metadata: its own metadata, as strings.
        data_offset: first byte of the data section in the file.
        nbytes: size of the data section, bytes.
    """

    specs: tuple[TensorSpec, ...]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]
    data_offset: int
    nbytes: int

    @property
    def schema(self) -> TensorSchema:
        """The tensors in canonical order."""
        return TensorSchema.of(self.specs)

    @property
    def is_canonical(self) -> bool:
        """Whether the data section is the flat buffer of `schema`."""
        schema = self.schema
        return all(self.offsets[spec.name] == schema.offsets[spec.name] for spec in schema if spec.nbytes)


def encode_header(schema: TensorSchema, metadata: Mapping[str, str]) -> bytes:
    """Return everything before the data section: size, JSON, padding.

    Args:
        schema: tensors; the data section will be its flat buffer.
        metadata: further strings; keys beginning with ``federation.`` are ours.
    """
    roles = {spec.name: spec.role.value for spec in schema if spec.role is not TensorRole.PARAMETER}
    document: dict[str, Any] = {
        "__metadata__": {
            **metadata,
            ROLES_KEY: json.dumps(roles, sort_keys=True, separators=(",", ":")),
            DIGEST_KEY: schema.digest.hex(),
        }
    }
    for spec in schema:
        begin = schema.offsets[spec.name]
        document[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.nbytes],
        }
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def header_size(prefix: bytes, file_bytes: int) -> int:
    """Return the size of the JSON from the first 8 bytes of a file.

    Raises:
        ValueError: the file is too short for it, or it is larger than we read.
    """
    size = int.from_bytes(prefix, "little")
    if len(prefix) != 8 or size > MAX_HEADER_BYTES or 8 + size > file_bytes:
        raise ValueError(f"header of {size} bytes does not fit a file of {file_bytes} or our limit {MAX_HEADER_BYTES}")
    return size


def parse_header(text: bytes, file_bytes: int) -> Header:
    """Read the JSON of a header.

    Args:
        text: what `header_size` announced.
        file_bytes: size of the whole file.

    Raises:
        ValueError: it is not a valid header, or does not describe exactly this file.
    """
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("header is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ does not map strings to strings")
    roles = _parse_roles(metadata)
    placed = sorted(_parse_entry(name, entry, roles) for name, entry in document.items())
    position = 0
    for begin, end, name, _ in placed:
        if begin != position:
            raise ValueError(f"tensor {name!r} begins at {begin}, expected {position}: gap or overlap")
        position = end
    data_offset = 8 + len(text)
    if position != file_bytes - data_offset:
        raise ValueError(f"tensors have {position} bytes, the data section has {file_bytes - data_offset}")
    return Header(
        specs=tuple(spec for *_, spec in placed),
        offsets={name: begin for begin, _, name, _ in placed},
        metadata=metadata,
        data_offset=data_offset,
        nbytes=position,
    )


def _parse_roles(metadata: dict[str, str]) -> dict[str, TensorRole]:
    roles = json.loads(metadata.get(ROLES_KEY, "{}"))
    if not isinstance(roles, dict):
        raise ValueError(f"{ROLES_KEY} is not a JSON object")
    return {name: TensorRole(role) for name, role in roles.items()}


def _parse_entry(name: str, entry: Any, roles: dict[str, TensorRole]) -> tuple[int, int, str, TensorSpec]:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError("sizes and offsets must be integers of 0 or more")
        role = roles.get(name, TensorRole.PARAMETER)
        spec = TensorSpec(name=name, dtype=_DTYPES[code], shape=tuple(shape), role=role)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"entry of tensor {name[:80]!r} is not valid: {error!r}") from error
    if end - begin != math.prod(spec.shape) * spec.dtype.itemsize:
        raise ValueError(f"tensor {name!r} has {end - begin} bytes, its shape and dtype need {spec.nbytes}")
    return begin, end, name, spec
