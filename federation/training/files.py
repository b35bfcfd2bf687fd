"""Tensors between a model and flat-buffer files, without a second copy of the model in memory.

A model file is read straight into the model's own memory. Files are written in place from offset 0 and never truncated:
the reader preallocated them and reuses them every round. Views are C-contiguous; see `federation.training.models`.

A large change is computed where the system has its file, which stays mapped from round to round
(`federation.training.kept_file`); what a large tensor was is looked at in its file likewise, a window at a time.
Where that is not possible, or not worth it, tensors are read, subtracted and written in tiles that stay in a core's
cache.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from federation.errors import StorageError
from federation.training.exchange import MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from federation.names import PayloadName
    from federation.tensors import TensorSchema
    from federation.tensors.buffers import Array
    from federation.training.exchange import Buffer
    from federation.training.kept_file import KeptFile

_TILE_BYTES = 512 * 1024
_WINDOW_BYTES = 16 * 1024 * 1024
_MAPPED_BYTES = 4 * 1024 * 1024
"""Tensors from this size on are mapped; for smaller ones that would cost more than reading them does."""
_EXTRA = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # the second is Windows' "do not touch the bytes"
_VIEWS_AT_ONCE = 512
"""Fewer than the 1024 that one preadv takes on Linux."""


class FileExchange:
    """What comes and goes as files: `federation.training.exchange.Inputs` and ``Outputs`` in one.

    Args:
        schema: schema of the whole model.
        inputs: file of each payload that came, by name.
        outputs: file each payload is written to, by name. A file may be longer than an encoded payload; it is then cut.
        kept: what is kept of the file of changes, from round to round; None: nothing.
    """

    def __init__(
        self,
        schema: TensorSchema,
        inputs: Mapping[PayloadName, str | Path],
        outputs: Mapping[PayloadName, str | Path],
        kept: KeptFile | None = None,
    ) -> None:
        self._schema = schema
        self._inputs = inputs
        self._outputs = outputs
        self._kept = kept

    def has(self, name: PayloadName) -> bool:
        """Tell whether a payload came."""
        return name in self._inputs

    def read(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
        """See `federation.training.exchange.Inputs.read`."""
        read_into(self._inputs[name], schema, arrays)

    def write(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> int:
        """See `federation.training.exchange.Outputs.write`."""
        write_from(self._output(name), schema, arrays)
        return schema.nbytes

    def write_change(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> int:
        """See `federation.training.exchange.Outputs.write_change`."""
        write_change(self._output(name), self._inputs[MODEL], self._schema, arrays, self._kept)
        return schema.nbytes

    def write_bytes(self, name: PayloadName, data: Buffer) -> int:
        """See `federation.training.exchange.Outputs.write_bytes`."""
        path = self._output(name)
        view = memoryview(data)
        with _open(path, os.O_RDWR | os.O_CREAT) as descriptor:
            _transfer(_write_views, descriptor, [view], path)
            os.ftruncate(descriptor, view.nbytes)
        return view.nbytes

    def _output(self, name: PayloadName) -> str | Path:
        try:
            return self._outputs[name]
        except KeyError:
            raise ValueError(
                f"no file is named for payload {name!r}; name one for each payload of the update"
            ) from None


def read_into(path: str | Path, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
    """Read a flat buffer into the arrays of its schema.

    Raises:
        StorageError: the file cannot be read or is too short.
    """
    with _open(path, os.O_RDONLY) as descriptor:
        _transfer(_read_views, descriptor, (_bytes(arrays[spec.name]) for spec in schema), path)


def write_from(path: str | Path, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
    """Write the arrays of a schema as its flat buffer.

    Raises:
        StorageError: the file cannot be written.
    """
    with _open(path, os.O_RDWR | os.O_CREAT) as descriptor:
        _transfer(_write_views, descriptor, (_bytes(np.ascontiguousarray(arrays[spec.name])) for spec in schema), path)


def write_change(
    path: str | Path, model: str | Path, schema: TensorSchema, arrays: Mapping[str, Array], kept: KeptFile | None = None
) -> None:
    """Write what the parameters changed by: w - x, in each tensor's own dtype.

    Args:
        path: file to write, a flat buffer of ``schema.parameters``.
        model: file that holds x, a flat buffer of ``schema.federated``.
        schema: schema of the whole model.
        arrays: the model as trained, w, by name.
        kept: what is kept of `path` from round to round; None: nothing.

    Raises:
        StorageError: a file cannot be read or written.
    """
    # What diverged is refused by its checks, with a better text than that of a warning.
    with _open(model, os.O_RDONLY) as source, _open(path, os.O_RDWR | os.O_CREAT) as target, np.errstate(all="ignore"):
        nbytes = schema.parameters.nbytes
        place = kept.bytes_of(target, nbytes) if kept is not None and nbytes >= _MAPPED_BYTES else None
        # No larger than needed: a small model should not touch fresh memory each round.
        tile = np.empty(min(_TILE_BYTES, max((spec.nbytes for spec in schema.parameters), default=0)), np.uint8)
        for spec in schema.parameters:
            read_at, write_at = schema.federated.offsets[spec.name], schema.parameters.offsets[spec.name]
            trained = arrays[spec.name].reshape(-1)
            is_large = spec.nbytes >= _MAPPED_BYTES
            for part in _parts(trained, _WINDOW_BYTES if is_large and place is not None else _TILE_BYTES):
                now, start = trained[part], part.start * trained.itemsize
                if is_large and place is not None:
                    base = _map(source, model, read_at + start, now)
                else:
                    base = tile[: now.nbytes].view(now.dtype)
                    _transfer(_read_views, source, [_bytes(base)], model, read_at + start)
                if place is not None:
                    np.subtract(now, base, out=place[write_at + start :][: now.nbytes].view(now.dtype))
                else:
                    np.subtract(now, base, out=base)
                    _transfer(_write_views, target, [_bytes(base)], path, write_at + start)


def _parts(array: Array, nbytes: int) -> Iterator[slice]:
    """Cut a flat array into parts of so many bytes."""
    step = nbytes // array.itemsize
    for start in range(0, array.size, step):
        yield slice(start, min(start + step, array.size))


def _map(descriptor: int, path: str | Path, offset: int, like: Array) -> Array:
    """Return a read-only window into a file, unmapped with the last of its views."""
    before = offset % mmap.ALLOCATIONGRANULARITY
    try:
        window = mmap.mmap(descriptor, before + like.nbytes, access=mmap.ACCESS_READ, offset=offset - before)
    except ValueError as error:
        raise StorageError(f"{path} ends before byte {offset + like.nbytes}") from error
    return np.frombuffer(window, dtype=like.dtype, count=like.size, offset=before)


def _read_views(descriptor: int, views: list[memoryview], offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, views, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    data = os.read(descriptor, views[0].nbytes)
    views[0][: len(data)] = data
    return len(data)


def _write_views(descriptor: int, views: list[memoryview], offset: int) -> int:
    if hasattr(os, "pwritev"):
        return os.pwritev(descriptor, views, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, views[0])


class _open:
    """A file descriptor for a block; errors of the file system become `StorageError`."""

    def __init__(self, path: str | Path, flags: int) -> None:
        self._path = path
        self._flags = flags
        self._descriptor = -1

    def __enter__(self) -> int:
        try:
            self._descriptor = os.open(self._path, self._flags | _EXTRA, 0o600)
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
