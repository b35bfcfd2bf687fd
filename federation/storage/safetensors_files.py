"""Model files: safetensors whose data section is the flat buffer of the schema.

So a checkpoint is broadcast as it lies, its payload digest is that of the data section, and the next model is written
beside it tile by tile. Rules:

1. A file appears under its name whole or not at all: temporary file, fsync, rename, fsync of the folder.
2. A writer hashes what it writes in order, so the digest costs no second pass.
3. First touch of a new file costs more than the arithmetic of a round, so a file of which somebody else keeps account,
   and which nobody needs any more, may be written over in place. Never one that somebody still reads (readers hold a
   shared lock) or that has another name (the best model is a hard link): that is left to them, under that name a new
   one is made.
4. Canonical files only; `federation.storage.assembly` makes one from any other valid safetensors file.
"""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from federation.errors import StorageError
from federation.storage.disk import (
    Buffer,
    begin_writeback,
    pread_into,
    preallocate,
    pwrite_all,
    sync_content,
    sync_folder,
    translated,
    try_lock,
)
from federation.storage.safetensors_format import Header, encode_header, header_size, parse_header
from federation.tensors import TensorSchema, pack
from federation.tensors.digest import PayloadHash, digest_of, payload_digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from federation.names import Digest


_KNOWN_BYTES = 1 << 14
"""Largest header that is remembered."""

_WRITEBACK_BYTES = 16 << 20
"""Of a large model goes to the disk at a time while the rest of it is made: a commit waits for the last."""


def read_header(path: Path) -> Header:
    """Return what any safetensors file holds.

    Raises:
        StorageError: it cannot be read or is not valid.
    """
    with translated(path), open(path, "rb") as file:
        return _read_header(file, path)


class ModelFile:
    """A canonical model file, open for reading at any offset from any thread. Implements `Readable`.

    Attributes:
        path: where it was opened.
        schema: its tensors, roles included.
        metadata: strings it carries.
        data_offset: first byte of the data section in the file.
        nbytes: size of the data section, bytes: that of the schema's flat buffer.
    """

    def __init__(self, path: Path, header: Header, descriptor: int) -> None:
        self.path = path
        self.schema = header.schema
        self.metadata = dict(header.metadata)
        self.data_offset = header.data_offset
        self.nbytes = header.nbytes
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> ModelFile:
        """Open a model file.

        Raises:
            StorageError: it cannot be read, is damaged, or its tensors do not lie in canonical order.
        """
        with translated(path):
            descriptor = os.open(path, os.O_RDONLY)
        try:
            if not try_lock(descriptor, exclusive=False):
                raise StorageError(f"{path} is being written")
            # Through the descriptor: the name may be another file's by now.
            with translated(path), open(descriptor, "rb", closefd=False) as file:
                header = _read_header(file, path)
            if not header.is_canonical:
                raise StorageError(f"{path} does not hold its tensors in canonical order; assemble it first")
            return cls(path, header, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the data section's bytes from `offset` on.

        Raises:
            StorageError: they are not all there, or the disk failed.
        """
        pread_into(self._descriptor, view, self.data_offset + offset, self.path)

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Return up to `nbytes` of the data section from `offset` on; fewer only at its end.

        Raises:
            StorageError: the disk failed.
        """
        wanted = max(0, min(nbytes, self.nbytes - offset))
        with translated(self.path):
            data = os.pread(self._descriptor, wanted, self.data_offset + offset)
        if len(data) != wanted:
            raise StorageError(f"{self.path}: {len(data)} bytes at {offset}, expected {wanted}")
        return data

    def digest(self) -> Digest:
        """Return the digest of the data section, in one pass.

        Raises:
            StorageError: the disk failed.
        """
        return digest_of(self.nbytes, self.pread_into)

    def close(self) -> None:
        """Give the file up; nothing may be read after."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ModelWriter:
    """Writes one model file: `append` … `finish`, then `commit` or `abort`. Leaving its context uncommitted aborts.

    Args:
        path: name of the file once committed; one writer at a time.
        schema: tensors to be written.
        metadata: strings to carry.
        in_place: what lies there is worth nothing and is written over (rule 3): until the commit the file is torn.

    Raises:
        DiskFullError: there is no room for the whole model; nothing was changed.
        StorageError: the disk failed, or another writer is at it.
    """

    def __init__(
        self, path: Path, schema: TensorSchema, *, metadata: Mapping[str, str] | None = None, in_place: bool = False
    ) -> None:
        self.path = path
        self.schema = schema
        self._written_to = path if in_place else path.with_name(f".{path.name}.tmp")
        self._is_synced = False
        self._position = 0
        self._written = 0
        self._sent = 0
        self._hash: PayloadHash | None = PayloadHash()
        self._digest: Digest | None = None
        header = encode_header(schema, metadata or {})
        self._data_offset = len(header)
        self._descriptor, self._is_new = _open_in_place(path) if in_place else (_open_temporary(self._written_to), True)
        try:
            size = len(header) + schema.nbytes
            preallocate(self._descriptor, size, path)
            with translated(path):
                os.ftruncate(self._descriptor, size)
            pwrite_all(self._descriptor, header, 0, path)
        except BaseException:
            self.abort()
            raise

    def append(self, view: Buffer) -> None:
        """Write the next bytes of the data section.

        Raises:
            DiskFullError, StorageError: as `write_at`.
        """
        self.write_at(self._position, view)

    def write_at(self, offset: int, view: Buffer) -> None:
        """Write bytes of the data section, each once; out of order costs a second pass for the digest.

        Raises:
            ValueError: beyond the end.
            DiskFullError: there is no room, which preallocation makes rare.
            StorageError: the disk failed.
        """
        nbytes = memoryview(view).nbytes
        if offset + nbytes > self.schema.nbytes:
            raise ValueError(f"write to byte {offset + nbytes} of a model of {self.schema.nbytes}")
        pwrite_all(self._descriptor, view, self._data_offset + offset, self.path)
        if offset != self._position:
            self._hash = None
        elif self._hash is not None:
            self._hash.update(view)
        self._position, self._written = offset + nbytes, self._written + nbytes
        if self._position - self._sent >= _WRITEBACK_BYTES:
            begin_writeback(self._descriptor, self._sent, self._position - self._sent)
            self._sent = self._position

    def finish(self) -> Digest:
        """Return the digest of the data section, which is now complete; nothing is durable yet.

        Raises:
            RuntimeError: bytes are missing.
            StorageError: the disk failed.
        """
        if self._digest is None:
            if self._written != self.schema.nbytes:
                raise RuntimeError(f"{self._written} of {self.schema.nbytes} bytes written")
            self._digest = self._hash.digest() if self._hash is not None else self._reread()
            try_lock(self._descriptor, exclusive=False)
        return self._digest

    def _reread(self) -> Digest:
        start = self._data_offset
        return digest_of(
            self.schema.nbytes, lambda offset, view: pread_into(self._descriptor, view, start + offset, self.path)
        )

    def reader(self) -> ModelFile:
        """Open the finished candidate, before it is committed or after.

        Raises:
            RuntimeError: not finished.
            StorageError: the disk failed.
        """
        if self._digest is None:
            raise RuntimeError("finish the model before reading it")
        return ModelFile.open(self._written_to if self._descriptor >= 0 else self.path)

    def sync(self) -> None:
        """Make the finished content durable, and in place the name too; `commit` then waits for the disk no more.

        May run while the candidate is read.

        Raises:
            RuntimeError: bytes are missing.
            StorageError: the disk failed.
        """
        self.finish()
        if self._is_synced:
            return
        sync_content(self._descriptor, self.path)
        if self._written_to == self.path and self._is_new:
            sync_folder(self.path.parent)
        self._is_synced = True

    def commit(self) -> Digest:
        """Make the file durable under its name and return its digest.

        Raises:
            RuntimeError: bytes are missing.
            StorageError: the disk failed; unless it is written in place, the earlier file of that name is as before.
        """
        digest = self.finish()
        self.sync()
        if self._written_to != self.path:
            with translated(self.path):
                os.replace(self._written_to, self.path)
            sync_folder(self.path.parent)
        os.close(self._descriptor)
        self._descriptor = -1
        return digest

    def abort(self) -> None:
        """Forget what was written. Does nothing after `commit`.

        What `sync` has made durable in place stays: who keeps account of it may have named it, and not know.
        """
        if self._descriptor >= 0:
            is_named = self._is_synced and self._written_to == self.path
            if self._is_new and not is_named:  # else its room is kept for the next writer
                with contextlib.suppress(OSError):
                    self._written_to.unlink()
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def write_model(path: Path, schema: TensorSchema, arrays: Mapping[str, npt.NDArray[Any]]) -> Digest:
    """Write a whole model held in memory and return the digest of its data section. Works on every platform.

    Raises:
        ValueError: a tensor is missing or differs from its spec.
        StorageError: the disk refused.
    """
    buffer = pack(schema, arrays)
    temporary = path.with_name(f".{path.name}.tmp")
    header = encode_header(schema, {})
    with translated(path, len(header) + len(buffer)):
        with open(temporary, "wb") as file:
            file.write(header)
            file.write(buffer)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    sync_folder(path.parent)
    return payload_digest(buffer)


def read_model(path: Path) -> tuple[TensorSchema, dict[str, npt.NDArray[Any]]]:
    """Read any valid safetensors file whole. Works on every platform.

    Returns:
        Its schema (roles are PARAMETER where the file does not say) and its tensors in canonical order, owned by the
        caller.

    Raises:
        StorageError: it cannot be read or is not valid.
    """
    header = read_header(path)
    schema = header.schema
    arrays: dict[str, npt.NDArray[Any]] = {}
    with translated(path), open(path, "rb") as file:
        for spec in schema:
            flat = np.empty(spec.elements, dtype=spec.dtype.numpy)
            file.seek(header.data_offset + header.offsets[spec.name])
            if spec.nbytes and file.readinto(flat.view(np.uint8).data) != spec.nbytes:
                raise StorageError(f"{path} ends inside tensor {spec.name!r}")
            arrays[spec.name] = flat.reshape(spec.shape)
    return schema, arrays


def _read_header(file: IO[bytes], path: Path) -> Header:
    file_bytes = os.fstat(file.fileno()).st_size
    try:
        text = file.read(header_size(file.read(8), file_bytes))
        return parse_header(text, file_bytes) if len(text) > _KNOWN_BYTES else _parse_small(text, file_bytes)
    except ValueError as error:
        raise StorageError(f"{path} is not a valid safetensors file: {error}") from error


@lru_cache(maxsize=16)
def _parse_small(text: bytes, file_bytes: int) -> Header:
    """Parse a header once that several open: a candidate is evaluated, then combined with, then committed."""
    return parse_header(text, file_bytes)


def _open_temporary(path: Path) -> int:
    """Open a temporary file to write, locked: what a killed writer left, or a fresh one."""
    with translated(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if try_lock(descriptor, exclusive=True):
            return descriptor
        os.close(descriptor)
    raise StorageError(f"{path} is being written or read by another; one writer of a model file at a time")


def _open_in_place(path: Path) -> tuple[int, bool]:
    """Open a file to be written over, locked; return whether the name is a new file's (rule 3)."""
    with translated(path):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR)
            if try_lock(descriptor, exclusive=True) and os.fstat(descriptor).st_nlink == 1:
                return descriptor, False
            os.close(descriptor)
            path.unlink()
        return _open_temporary(path), True
