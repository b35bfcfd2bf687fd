"""Models as a combination reads and writes them, and models held in memory that can be read and written so.

`ModelFile` and `ModelWriter` are a source and a sink on disk. These here do the same over bytes that somebody owns (a
bytearray, shared memory, a slice of either): what is simulated goes through the same combination, to the same digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from federation.tensors import pack, unpack
from federation.tensors.digest import PayloadHash, payload_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from federation.names import Digest
    from federation.storage.disk import Buffer
    from federation.tensors import TensorSchema


class ModelSource(Protocol):
    """A model, or a vector as large, that is read by position. A `Readable` that knows its layout."""

    @property
    def schema(self) -> TensorSchema:
        """Its tensors."""
        ...

    @property
    def nbytes(self) -> int:
        """Size of its flat buffer, bytes."""
        ...

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the flat buffer's bytes from `offset` on.

        Raises:
            StorageError: they are not all there, or the disk failed.
        """
        ...


class ModelSink(Protocol):
    """A model being written in order: `append` … `finish`."""

    @property
    def schema(self) -> TensorSchema:
        """Its tensors."""
        ...

    def append(self, view: Buffer) -> None:
        """Write the next bytes of the flat buffer.

        Raises:
            ValueError: beyond the end.
            StorageError: the disk failed.
        """
        ...

    def finish(self) -> Digest:
        """Return the digest of the flat buffer, which is now complete.

        Raises:
            RuntimeError: bytes are missing.
            StorageError: the disk failed.
        """
        ...


class PlacedSink(ModelSink, Protocol):
    """A sink that takes bytes in any order."""

    def write_at(self, offset: int, view: Buffer) -> None:
        """Write bytes of the flat buffer anywhere; out of order costs a second pass for the digest.

        Raises:
            ValueError: beyond the end.
            StorageError: the disk failed.
        """
        ...


class MemoryBytes:
    """Bytes in memory as a `Readable`, and as a `ByteSink` where they are a bytearray.

    Args:
        data: the bytes, not copied.
    """

    def __init__(self, data: Buffer) -> None:
        self._data = data

    @property
    def nbytes(self) -> int:
        """Size, bytes."""
        return memoryview(self._data).nbytes

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on."""
        target = memoryview(view).cast("B")
        target[:] = memoryview(self._data).cast("B")[offset : offset + target.nbytes]

    def append(self, view: Buffer) -> None:
        """Add bytes at the end.

        Raises:
            TypeError: they are not a bytearray.
        """
        if not isinstance(self._data, bytearray):
            raise TypeError("only a bytearray can be appended to")
        self._data += memoryview(view).cast("B")


class MemoryModel:
    """A flat buffer in memory as a `ModelSource`, or a payload in memory as a `Readable`.

    Args:
        schema: its layout.
        data: the bytes, not copied: at least as many as the schema has; more, as shared memory rounds up, are ignored.
    """

    def __init__(self, schema: TensorSchema, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        if view.nbytes < schema.nbytes:
            raise ValueError(f"{view.nbytes} bytes for a model of {schema.nbytes}")
        self.schema = schema
        self._view = view[: schema.nbytes]

    @classmethod
    def of(cls, schema: TensorSchema, arrays: Mapping[str, np.ndarray[Any, Any]]) -> MemoryModel:
        """Return a model with copies of arrays."""
        return cls(schema, pack(schema, arrays))

    @property
    def nbytes(self) -> int:
        """Size of the flat buffer, bytes."""
        return self.schema.nbytes

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on."""
        target = memoryview(view).cast("B")
        target[:] = self._view[offset : offset + target.nbytes]

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return its tensors, which share its memory."""
        return unpack(self.schema, self._view)

    def digest(self) -> Digest:
        """Return the digest of the flat buffer, in one pass."""
        return payload_digest(self._view)


class MemoryWriter:
    """Writes a model into memory. Implements `PlacedSink`.

    Args:
        schema: its layout.
        data: where to, at least as many bytes as the schema has; by default a bytearray of its own.
    """

    def __init__(self, schema: TensorSchema, data: bytearray | memoryview | None = None) -> None:
        view = memoryview(bytearray(schema.nbytes) if data is None else data).cast("B")
        if view.nbytes < schema.nbytes:
            raise ValueError(f"{view.nbytes} bytes for a model of {schema.nbytes}")
        self.schema = schema
        self._view = view[: schema.nbytes]
        self._position = 0
        self._written = 0
        self._hash: PayloadHash | None = PayloadHash()

    def append(self, view: Buffer) -> None:
        """Write the next bytes.

        Raises:
            ValueError: beyond the end.
        """
        self.write_at(self._position, view)

    def write_at(self, offset: int, view: Buffer) -> None:
        """Write bytes anywhere, each once.

        Raises:
            ValueError: beyond the end.
        """
        piece = memoryview(view).cast("B")
        end = offset + piece.nbytes
        if end > self.schema.nbytes:
            raise ValueError(f"write to byte {end} of a model of {self.schema.nbytes}")
        self._view[offset:end] = piece
        if offset != self._position:
            self._hash = None
        elif self._hash is not None:
            self._hash.update(piece)
        self._position, self._written = end, self._written + piece.nbytes

    def finish(self) -> Digest:
        """Return the digest of the flat buffer, which is now complete.

        Raises:
            RuntimeError: bytes are missing.
        """
        if self._written != self.schema.nbytes:
            raise RuntimeError(f"{self._written} of {self.schema.nbytes} bytes written")
        return self._hash.digest() if self._hash is not None else payload_digest(self._view)

    def reader(self) -> MemoryModel:
        """Return the finished model; it shares the writer's memory.

        Raises:
            RuntimeError: bytes are missing.
        """
        self.finish()
        return MemoryModel(self.schema, self._view)
