"""Flat buffers in plain files: what has no header, because both ends know its schema.

`FlatFile` reads one by position and `FlatWriter` writes one in order, over a descriptor that somebody else opened; a
collaborator's exchange folder is made of such files. `ScratchFile` is one without a name, for what need not outlive the
process: the disk has it back once it is closed, however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from federation.errors import StorageError
from federation.storage.disk import Buffer, pread_into, pwrite_all, translated
from federation.tensors.digest import PayloadHash

if TYPE_CHECKING:
    from pathlib import Path

    from federation.names import Digest
    from federation.tensors import TensorSchema


class FlatFile:
    """A flat buffer in an open file. Implements `ModelSource`.

    Args:
        descriptor: open for reading; not closed here.
        schema: its layout.
        path: of the file, for errors.
    """

    def __init__(self, descriptor: int, schema: TensorSchema, path: Path) -> None:
        self.schema = schema
        self.nbytes = schema.nbytes
        self._descriptor = descriptor
        self._path = path

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on.

        Raises:
            StorageError: they are not all there, or the disk failed.
        """
        pread_into(self._descriptor, view, offset, self._path)


class FlatWriter:
    """Writes a flat buffer into an open file. Implements `ModelSink`.

    Args:
        descriptor: open for writing; not closed here.
        schema: its layout.
        path: of the file, for errors.
    """

    def __init__(self, descriptor: int, schema: TensorSchema, path: Path) -> None:
        self.schema = schema
        self._descriptor = descriptor
        self._path = path
        self._position = 0
        self._hash = PayloadHash()

    def append(self, view: Buffer) -> None:
        """Write the next bytes.

        Raises:
            ValueError: beyond the end.
            StorageError: the disk failed.
        """
        end = self._position + memoryview(view).nbytes
        if end > self.schema.nbytes:
            raise ValueError(f"write to byte {end} of a model of {self.schema.nbytes}")
        pwrite_all(self._descriptor, view, self._position, self._path)
        self._hash.update(view)
        self._position = end

    def finish(self) -> Digest:
        """Return the digest of the flat buffer, which is now complete.

        Raises:
            RuntimeError: bytes are missing.
        """
        if self._position != self.schema.nbytes:
            raise RuntimeError(f"{self._position} of {self.schema.nbytes} bytes written")
        return self._hash.digest()


class ScratchFile:
    """Bytes that are written once in order and then read by position; gone when it is closed. Implements `Readable`.

    Args:
        folder: on whose disk it is.

    Attributes:
        nbytes: bytes written so far.

    Raises:
        StorageError: the disk refused.
    """

    def __init__(self, folder: Path) -> None:
        self.nbytes = 0
        self._folder = folder
        self._hash = PayloadHash()
        with translated(folder):
            descriptor, name = tempfile.mkstemp(prefix=".scratch-", dir=folder)
            os.unlink(name)
        self._descriptor = descriptor

    def append(self, view: Buffer) -> None:
        """Write the next bytes.

        Raises:
            DiskFullError: there is no room.
            StorageError: the disk failed.
        """
        pwrite_all(self._descriptor, view, self.nbytes, self._folder)
        self._hash.update(view)
        self.nbytes += memoryview(view).nbytes

    def digest(self) -> Digest:
        """Return the digest of what was written so far."""
        return self._hash.digest()

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on.

        Raises:
            StorageError: they are not all there, or the disk failed.
        """
        pread_into(self._descriptor, view, offset, self._folder)

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Return up to `nbytes` from `offset` on; fewer only at the end.

        Raises:
            StorageError: the disk failed.
        """
        wanted = max(0, min(nbytes, self.nbytes - offset))
        with translated(self._folder):
            data = os.pread(self._descriptor, wanted, offset)
        if len(data) != wanted:
            raise StorageError(f"{self._folder}: {len(data)} bytes at {offset} of a scratch file, expected {wanted}")
        return data

    def close(self) -> None:
        """Give the file up; nothing may be read after."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
