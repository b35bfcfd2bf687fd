"""Payloads in pieces: cut, sent from any offset, checked and put together again. Memory is one chunk.

Rules, in order:

1. Chunks come in order without gap or overlap, none is empty, none larger than 4 MiB, none passes the announced end.
2. A chunk that came is as it was sent: TLS sees to that (docs/adr/0013-no-checksum-beside-tls.md).
3. The digest of the whole is computed on the way: BLAKE3 over the encoded bytes of a payload, SHA-256 over a file. It
   decides whether the payload is the one that was announced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from federation.errors import MalformedMessageError, TransportError
from federation.names import Digest
from federation.tensors.digest import PayloadHash
from federation.v1 import tensors_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


CHUNK_BYTES = 4 << 20
"""Pieces of a payload where few sites send or fetch at once: each costs both sides a message."""
FIRST_CHUNK_BYTES = 1 << 20
"""The first piece of each transfer has no more: a line that is cut before 4 MiB are through gets on all the same."""
LEAST_CHUNK_BYTES = 64 << 10
"""Pieces of an upload are not shorter, but for the last of a payload."""
MAX_CHUNK_BYTES = 4 << 20


Buffer = bytes | memoryview


class Piece(Protocol):
    """A chunk as it is checked: `tensors_pb2.Chunk`, or what `federation.wire.pieces` reads without copying it."""

    @property
    def offset(self) -> int:
        """Position of the first byte in the encoded payload, bytes."""
        ...

    @property
    def data(self) -> Buffer:
        """The bytes."""
        ...


def cut(total: int, offset: int = 0, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Say where the pieces of a payload are: (offset, size). The first has at most `FIRST_CHUNK_BYTES`.

    Arguments and errors as `read_chunks`.
    """
    if offset > total:
        raise MalformedMessageError(f"offset {offset} is beyond the payload's {total} bytes")
    if offset < 0 or not 1 <= chunk_bytes <= MAX_CHUNK_BYTES:
        raise ValueError(f"offset {offset} or chunk size {chunk_bytes} is out of range")
    return _cut(total, offset, chunk_bytes)


def _cut(total: int, offset: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    size = min(chunk_bytes, FIRST_CHUNK_BYTES)
    while offset < total:
        size = min(size, total - offset)
        yield offset, size
        offset += size
        size = chunk_bytes


def read_chunks(
    pread: Callable[[int, int], bytes], total: int, offset: int = 0, *, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tensors_pb2.Chunk]:
    """Cut a payload into chunks. Each step reads one: run it in a thread if the source may block.

    Args:
        pread: returns the bytes at (offset, size), all of them, such as `ModelFile.pread`.
        total: size of the payload, bytes.
        offset: where to begin.
        chunk_bytes: size of each but the first, which may be smaller, and the last.

    Raises:
        ValueError: offset or chunk size make no sense.
        MalformedMessageError: the offset is beyond the end; it came from the peer that asked.
        StorageError: from `pread`.
    """
    pieces = cut(total, offset, chunk_bytes=chunk_bytes)
    return (tensors_pb2.Chunk(offset=start, data=pread(start, size)) for start, size in pieces)


class RunningHash(Protocol):
    """A digest being computed: `PayloadHash`, or one of hashlib's."""

    def update(self, piece: Buffer, /) -> None:
        """Take in the next bytes."""

    def digest(self) -> bytes:
        """Return the digest of the bytes so far."""


class ChunkReceiver:
    """Checks the chunks of one payload as they come.

    Args:
        total: announced size of the payload, bytes.
        hashing: makes what computes its digest; for a file, which has another digest, ``hashlib.sha256``.

    A transfer that was cut goes on with the same receiver: its digest covers what came before.
    """

    def __init__(self, total: int, hashing: Callable[[], RunningHash] = PayloadHash) -> None:
        self.total = total
        self._received = 0
        self._hash = hashing()

    @property
    def received(self) -> int:
        """Checked bytes so far: the offset the next chunk must have."""
        return self._received

    @property
    def is_complete(self) -> bool:
        """Whether every announced byte has come."""
        return self._received == self.total

    def check(self, chunk: Piece) -> Buffer:
        """Return a chunk's data if it is the next piece. Changes nothing.

        Raises:
            MalformedMessageError: it is empty, too large, out of order, or passes the announced end.
        """
        data = chunk.data
        if not 1 <= len(data) <= MAX_CHUNK_BYTES:
            raise MalformedMessageError(f"chunk of {len(data)} bytes; expected 1 to {MAX_CHUNK_BYTES}")
        if chunk.offset != self._received:
            raise MalformedMessageError(f"chunk at offset {chunk.offset}, expected {self._received}")
        if self._received + len(data) > self.total:
            raise MalformedMessageError(
                f"chunk ends at {self._received + len(data)}, beyond the {self.total} bytes announced"
            )
        return data

    def take(self, data: Buffer) -> None:
        """Count bytes that `check` returned and that are safely stored."""
        self._hash.update(data)
        self._received += len(data)

    def accept(self, chunk: Piece) -> Buffer:
        """Check a chunk and count it at once, for receivers that cannot fail to keep it.

        Returns:
            Its data, not copied.

        Raises:
            MalformedMessageError: as `check`.
        """
        data = self.check(chunk)
        self.take(data)
        return data

    def finish(self, expected: Digest | None = None) -> Digest:
        """Return the digest of the whole payload.

        Args:
            expected: what it must be; None to learn it.

        Raises:
            TransportError: bytes are missing, or the digest is another; fetch it again.
        """
        if not self.is_complete:
            raise TransportError(f"the payload ended after {self._received} of {self.total} bytes")
        digest = Digest(self._hash.digest())
        if expected is not None and digest != expected:
            raise TransportError(f"the payload's digest is {digest.hex()[:16]}…, expected {expected.hex()[:16]}…")
        return digest
