"""One payload of an upload on its way into the spool: everything that is checked, in one pass over each chunk.

Order and size, the spool, then finite-ness and norm, then the digest. A chunk counts only once it is written, so
whatever fails, `held` is what is really there. A compressed payload is stored as it comes; once its digest is right,
`check_decoded` reads it as what it stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.errors import Refusal, UpdateRejectedError
from federation.storage.encoded import DecodedPayload
from federation.tensors import NotFiniteError, TensorScan, TensorSchema
from federation.wire.chunks import ChunkReceiver
from federation.wire.payloads import IDENTITY_CODEC

if TYPE_CHECKING:
    from federation.names import Digest
    from federation.plan import PayloadPlan
    from federation.storage.disk import Readable
    from federation.storage.spool import SpoolPayload
    from federation.wire.chunks import Piece
    from federation.wire.payloads import Payload

_BLOCK_BYTES = 1 << 19
"""A whole number of codec blocks, of float32 and of float64."""


class PayloadReception:
    """Receives one payload; keep it as long as the upload may resume. One chunk at a time; run `accept` in a thread.

    Args:
        payload: as announced and checked.
        schema: layout of its flat buffer, of exactly the announced size unless it is compressed.
        sink: where it goes; nothing received yet.
    """

    def __init__(self, payload: Payload, schema: TensorSchema, sink: SpoolPayload) -> None:
        self._scan = TensorScan(schema) if payload.codec == IDENTITY_CODEC else None
        nbytes = payload.encoded_bytes if self._scan is None else schema.nbytes
        if payload.encoded_bytes != nbytes or sink.nbytes != nbytes or sink.received:
            raise ValueError(f"payload {payload.name} does not fit its schema or its place in the spool")
        self.payload = payload
        self._receiver = ChunkReceiver(payload.encoded_bytes)
        self._sink = sink
        self._refusal: UpdateRejectedError | None = None

    @property
    def held(self) -> int:
        """Checked and stored bytes: where the sender goes on."""
        return self._receiver.received

    @property
    def norm(self) -> float:
        """L2 norm of the float elements so far; 0 of a compressed payload."""
        return self._scan.norm if self._scan is not None else 0.0

    def accept(self, chunk: Piece) -> None:
        """Check and store the next chunk.

        Raises:
            MalformedMessageError: out of order, too large, or past the end.
            UpdateRejectedError: NOT_FINITE. The update is lost.
            DiskFullError, StorageError: it could not be stored; resume from `held`.
        """
        if self._refusal is not None:
            raise self._refusal  # the stream it was raised in may have been cut before anybody heard of it
        data = self._receiver.check(chunk)
        # Stored before it is scanned: a scan cannot be taken back, a write at the same place can be made again.
        self._sink.pwrite(self._receiver.received, data)
        try:
            if self._scan is not None:
                self._scan.feed(data)
        except NotFiniteError as error:
            self._refusal = UpdateRejectedError(
                Refusal.NOT_FINITE, f"payload {self.payload.name}: {error}; the local training has diverged"
            )
            raise self._refusal from error
        self._receiver.take(data)

    def finish(self, digest: Digest | None) -> Digest:
        """Return the digest of the payload, which is whole and, as far as its sender says, what that meant.

        Args:
            digest: as its sender says; None where it did not compute one.

        Raises:
            UpdateRejectedError: TRUNCATED or CORRUPT.
        """
        if not self._receiver.is_complete:
            raise UpdateRejectedError(
                Refusal.TRUNCATED,
                f"payload {self.payload.name} ended after {self.held} of {self.payload.encoded_bytes} bytes",
            )
        found = self._receiver.finish()
        if digest is not None and found != digest:
            raise UpdateRejectedError(
                Refusal.CORRUPT,
                f"payload {self.payload.name} has digest {found.hex()[:16]}…, its sender says {digest.hex()[:16]}…",
            )
        return found


def check_decoded(plan: PayloadPlan, source: Readable) -> float:
    """Decode a compressed payload once, block by block, and return its L2 norm. Blocks.

    Args:
        plan: what it must be.
        source: its bytes, whole, with the digest their sender gave.

    Raises:
        UpdateRejectedError: WRONG_CODEC, it is no frame of the plan's codec; NOT_FINITE.
        StorageError: the disk failed.
    """
    scan = TensorScan(plan.schema)
    try:
        payload = DecodedPayload(source, plan)
        block = memoryview(bytearray(min(_BLOCK_BYTES, plan.schema.nbytes)))
        for segment in plan.schema.segments:
            for start in range(0, segment.nbytes, _BLOCK_BYTES):
                view = block[: min(_BLOCK_BYTES, segment.nbytes - start)]
                payload.pread_into(segment.offset + start, view)
                scan.feed(view)
        scan.finish()
    except NotFiniteError as error:
        raise UpdateRejectedError(
            Refusal.NOT_FINITE, f"payload {plan.name}: {error}; the local training has diverged"
        ) from error
    except ValueError as error:
        raise UpdateRejectedError(
            Refusal.WRONG_CODEC, f"payload {plan.name!r} is not a {plan.codec} frame: {error}"
        ) from error
    return scan.norm
