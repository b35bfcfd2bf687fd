"""What a payload is called by: the BLAKE3 hash of its bytes.

Every byte of every model and update is hashed at both ends of every transfer, so the hash decides how fast a round can
be: BLAKE3 takes a quarter of SHA-256's time or less (docs/adr/0008-payload-digests.md). Files that people handle, and
everything that is signed, keep SHA-256.

Reference: O'Connor, Aumasson, Neves, Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from federation.names import Digest

if TYPE_CHECKING:
    from collections.abc import Callable

Buffer = bytes | bytearray | memoryview
_BLOCK_BYTES = 1 << 20


class PayloadHash:
    """The digest of a payload whose bytes come piece by piece."""

    def __init__(self) -> None:
        self._blake3 = blake3()

    def update(self, piece: Buffer) -> None:
        """Take in the next bytes. The interpreter lock is free meanwhile."""
        self._blake3.update(piece)

    def digest(self) -> Digest:
        """Return the digest of the bytes so far."""
        return Digest(self._blake3.digest())


def payload_digest(data: Buffer) -> Digest:
    """Return the digest of a whole payload."""
    return Digest(blake3(data).digest())


def digest_of(nbytes: int, read: Callable[[int, memoryview], None]) -> Digest:
    """Return the digest of a payload that lies elsewhere, in one pass and a mebibyte of memory.

    Args:
        nbytes: its size.
        read: fills a view with the bytes from an offset on; what it raises is raised here.
    """
    running = PayloadHash()
    block = memoryview(bytearray(min(_BLOCK_BYTES, nbytes)))
    for offset in range(0, nbytes, _BLOCK_BYTES):
        view = block[: nbytes - offset]
        read(offset, view)
        running.update(view)
    return running.digest()
