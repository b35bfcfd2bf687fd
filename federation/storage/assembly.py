"""Canonical model files out of any valid safetensors files: copied tensor by tensor, never held whole.

One operation serves three needs: a submitted model is checked and brought into canonical order, it is split into what
is federated and what is delivered once, and both are joined again for the user who downloads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.errors import PlanError
from federation.storage.disk import translated
from federation.storage.safetensors_files import ModelWriter, read_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from federation.names import Digest
    from federation.storage.safetensors_format import Header
    from federation.tensors import TensorSchema, TensorSpec

_BLOCK_BYTES = 1 << 20


def assemble_model(
    path: Path, schema: TensorSchema, sources: Sequence[Path], *, metadata: Mapping[str, str] | None = None
) -> Digest:
    """Write the tensors of `schema` to a canonical file at `path` and return the digest of its data section.

    Args:
        path: file to write, durably.
        schema: tensors wanted; roles are taken from here.
        sources: files that hold them, in any order; the first that has a tensor gives it, others are ignored.
        metadata: strings the new file carries.

    Raises:
        PlanError: a tensor is in no source, or has another dtype or shape there.
        StorageError: a source is not a valid file, or the disk failed; `path` is then as before.
    """
    places = _find(schema, [(source, read_header(source)) for source in sources])
    block = memoryview(bytearray(_BLOCK_BYTES))
    with ModelWriter(path, schema, metadata=metadata) as writer:
        for spec in schema:
            source, offset = places[spec.name]
            _copy(source, offset, spec, writer, block)
        return writer.commit()


def _find(schema: TensorSchema, headers: list[tuple[Path, Header]]) -> dict[str, tuple[Path, int]]:
    """Where each tensor lies: file and offset in it."""
    found: dict[str, tuple[Path, int]] = {}
    for source, header in headers:
        for spec in header.specs:
            if spec.name not in schema or spec.name in found:
                continue
            wanted = schema[spec.name]
            if (spec.dtype, spec.shape) != (wanted.dtype, wanted.shape):
                raise PlanError(
                    f"tensor {spec.name!r} of {source.name} is {spec.dtype.value}{list(spec.shape)}, "
                    f"the experiment says {wanted.dtype.value}{list(wanted.shape)}; build and submit them together"
                )
            found[spec.name] = (source, header.data_offset + header.offsets[spec.name])
    missing = [spec.name for spec in schema if spec.name not in found]
    if missing:
        raise PlanError(f"the model file lacks {len(missing)} of {len(schema)} tensors, the first is {missing[0]!r}")
    return found


def _copy(source: Path, offset: int, spec: TensorSpec, writer: ModelWriter, block: memoryview) -> None:
    with translated(source), open(source, "rb", buffering=0) as file:
        file.seek(offset)
        left = spec.nbytes
        while left:
            got = file.readinto(block[: min(left, len(block))])
            if not got:
                raise PlanError(f"{source.name} ends inside tensor {spec.name!r}")
            writer.append(block[:got])
            left -= got
