"""Tensors between a model and flat-buffer files, without a second copy of the model in memory.

A model file is read straight into the model's own memory. A change is computed tile by tile: a tile of the model file
is read again, subtracted, written. Files are written in place from offset 0 and never truncated: the reader
preallocated them and reuses them every round. Views are C-contiguous; see `federation.training.models`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from federation.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from federation.tensors import TensorSchema
    from federation.tensors.buffers import Array

_TILE_BYTES = 4 * 1024 * 1024
_VIEWS_AT_ONCE = 512
"""Fewer than the 1024 that one preadv takes on Linux."""


def read_into(path: str | Path, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
    """Read a flat buffer into the arrays of its schema.

    Raises:
        StorageError: the file cannot be read or is too short.
    """
    with _open(path, os.O_RDONLY) as descriptor:
        _transfer(os.preadv, descriptor, (_bytes(arrays[spec.name]) for spec in schema), path)


def write_from(path: str | Path, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
    """Write the arrays of a schema as its flat buffer.

    Raises:
        StorageError: the file cannot be written.
    """
    with _open(path, os.O_RDWR | os.O_CREAT) as descriptor:
        _transfer(os.pwritev, descriptor, (_bytes(np.ascontiguousarray(arrays[spec.name])) for spec in schema), path)


def write_change(path: str | Path, model: str | Path, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
    """Write what the parameters changed by: w - x, in each tensor's own dtype.

    Args:
        path: file to write, a flat buffer of ``schema.parameters``.
        model: file that holds x, a flat buffer of ``schema.federated``.
        schema: schema of the whole model.
        arrays: the model as trained, w, by name.

    Raises:
        StorageError: a file cannot be read or written.
    """
    # No larger than needed: a small model should not touch fresh memory each round.
    tile = bytearray(min(_TILE_BYTES, max((spec.nbytes for spec in schema.parameters), default=0)))
    with _open(model, os.O_RDONLY) as source, _open(path, os.O_RDWR | os.O_CREAT) as target:
        for spec in schema.parameters:
            read_at, write_at = schema.federated.offsets[spec.name], schema.parameters.offsets[spec.name]
            trained = arrays[spec.name].reshape(-1)
            step = _TILE_BYTES // spec.dtype.itemsize
            for start in range(0, spec.elements, step):
                part = trained[start : start + step]
                base = np.frombuffer(tile, dtype=part.dtype, count=part.size)
                offset = start * spec.dtype.itemsize
                _transfer(os.preadv, source, [_bytes(base)], model, read_at + offset)
                with np.errstate(all="ignore"):  # what diverged is refused by its checks, with a better text
                    np.subtract(part, base, out=base)
                _transfer(os.pwritev, target, [_bytes(base)], path, write_at + offset)


class _open:
    """A file descriptor for a block; errors of the file system become `StorageError`."""

    def __init__(self, path: str | Path, flags: int) -> None:
        self._path = path
        self._flags = flags
        self._descriptor = -1

    def __enter__(self) -> int:
        try:
            self._descriptor = os.open(self._path, self._flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot open {self._path}: {error.strerror}") from error
        return self._descriptor

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        os.close(self._descriptor)
        if isinstance(error, OSError):
            raise StorageError(f"cannot read or write {self._path}: {error.strerror}") from error


def _bytes(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # an array is a buffer


def _transfer(
    call: Callable[[int, list[memoryview], int], int],
    descriptor: int,
    views: Iterable[memoryview],
    path: str | Path,
    offset: int = 0,
) -> None:
    """Read or write all views one after another; the kernel may do less than asked, and takes a limited number."""
    queue = [view for view in views if view.nbytes]
    queue.reverse()
    while queue:
        batch = queue[: -_VIEWS_AT_ONCE - 1 : -1]
        done = call(descriptor, batch, offset)
        if done == 0:
            raise StorageError(f"{path} ends at byte {offset}; {sum(view.nbytes for view in queue)} more are expected")
        offset += done
        while done:
            view = queue.pop()
            if view.nbytes > done:
                queue.append(view[done:])
                break
            done -= view.nbytes
