"""What sites may fetch: payloads offered by their digest, read from the model files as they lie.

Rules:

1. A payload of up to 256 KiB is read once and travels inside its task; a larger one is pulled.
2. A pull in a call begins at any offset and reads one piece ahead in a thread. Pieces have 4 MiB while few sites pull,
   but for its first, and less when many do, so that what is under way does not grow with the number of sites.
3. Sites pull the same payload at nearly the same time: a piece is read and encoded by the first pull that comes to it,
   and the last few are kept for those close behind.
4. Over a line of its own a large payload goes without all this: a thread reads a block and sends it
   (`federation.transport.bulk`). The site's word that it has all is that it ends the line.
5. A retired payload is no longer found, but pulls that had begun go on to its end; then its file is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federation.errors import MalformedMessageError, NotFoundError
from federation.v1 import aggregator_pb2 as pb
from federation.wire.chunks import CHUNK_BYTES, FIRST_CHUNK_BYTES
from federation.wire.payloads import BUFFERS, INLINE_BYTES, MODEL, STEP, Payload, payload_to_proto
from federation.wire.pieces import read_model_message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from federation.names import Digest, PayloadName
    from federation.storage.flat import ScratchFile
    from federation.storage.safetensors_files import ModelFile
    from federation.telemetry.metrics import Metrics
    from federation.transport.bulk import BulkServer, Ticket
    from federation.transport.lines import Line


SMALL_PIECE_BYTES = 256 << 10
"""Size of a piece while many sites pull."""
FEW_PULLS = 4
KEPT_PIECES = 8


@dataclass(eq=False, slots=True, kw_only=True)
class Offer:
    """One payload that may be fetched.

    Attributes:
        payload: what it is; its digest is set.
        inline: its bytes, if it is small; None if it is pulled.
    """

    payload: Payload
    inline: bytes | None
    _file: ModelFile | ScratchFile
    _pulls: int = 0
    _is_retired: bool = False
    _pieces: dict[tuple[int, int], asyncio.Future[bytes]] = field(default_factory=dict)

    def piece(self, offset: int, size: int, pool: Executor) -> asyncio.Future[bytes]:
        """Return a piece as an encoded `PullModelReply`, read in a thread. It may be shared: shield it."""
        key = (offset, size)
        piece = self._pieces.get(key)
        if piece is None or (piece.done() and piece.exception() is not None):
            piece = asyncio.get_running_loop().run_in_executor(pool, self._read, offset, size)
            self._pieces[key] = piece
            if len(self._pieces) > KEPT_PIECES:
                del self._pieces[next(iter(self._pieces))]
        return piece

    def _read(self, offset: int, size: int) -> bytes:
        return read_model_message(self._file.pread, offset, size)

    def send(self, offset: int, line: Line) -> None:
        """Send the bytes from `offset` on over a line, and wait until the other side has them. Blocks.

        Raises:
            TransportError: the line was cut.
            StorageError: the disk failed.
        """
        line.send_from(self._file.pread, offset, self.payload.encoded_bytes)
        line.wait_for_end()

    @contextlib.contextmanager
    def pulled(self) -> Iterator[None]:
        """Keep the file open for a pull."""
        self._pulls += 1
        try:
            yield
        finally:
            self._pulls -= 1
            if not self._pulls:
                self._pieces.clear()
            self._maybe_close()

    def retire(self) -> None:
        """Note that no new pull will begin."""
        self._is_retired = True
        self._maybe_close()

    def _maybe_close(self) -> None:
        if self._is_retired and not self._pulls:
            self._file.close()


def make_offer(name: PayloadName, file: ModelFile, digest: Digest) -> Offer:
    """Return an offer of a model file's data section, which takes the file over. Blocks."""
    payload = Payload(name=name, schema_digest=file.schema.digest, encoded_bytes=file.nbytes, digest=digest)
    return make_offer_of(payload, file)


def make_offer_of(payload: Payload, file: ModelFile | ScratchFile) -> Offer:
    """Return an offer of a file's bytes, which takes the file over. Blocks."""
    inline = file.pread(0, payload.encoded_bytes) if payload.encoded_bytes <= INLINE_BYTES else None
    return Offer(payload=payload, inline=inline, _file=file)


def offers_inside(offers: Sequence[Offer], held: Mapping[str, bytes]) -> tuple[Offer, ...]:
    """Return the payloads that a task for one site has inside: small ones that the site should not hold.

    Of a model and the step to it: the step, if the site should hold what it is added to; else the model.

    Args:
        offers: what the task names.
        held: digest of the payload of each name that the site should hold. Should it have lost it, it pulls what the
            task names.
    """
    by_name = {offer.payload.name: offer.payload for offer in offers}
    wanted = {name for name, payload in by_name.items() if held.get(name) != payload.digest}
    if STEP in by_name:
        is_steppable = MODEL in wanted and held.get(MODEL) == by_name[STEP].from_digest
        unwanted = {MODEL} if is_steppable else {STEP, BUFFERS}
        wanted = (wanted - unwanted) | ({STEP, BUFFERS} if is_steppable else set())
    return tuple(offer for offer in offers if offer.inline is not None and offer.payload.name in wanted)


class Offers:
    """All payloads that may be fetched now.

    Args:
        pool: threads that read.
        metrics: counts transfers.
    """

    def __init__(self, pool: Executor, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._by_digest: dict[bytes, list[Offer]] = {}
        self._pulls = 0

    def add(self, offer: Offer) -> Offer:
        """Let a payload be found."""
        # Two payloads may have equal bytes, such as two empty ones.
        self._by_digest.setdefault(offer.payload.digest or b"", []).append(offer)
        return offer

    def retire(self, offer: Offer) -> None:
        """Let a payload be found no longer."""
        digest = offer.payload.digest or b""
        left = [other for other in self._by_digest.get(digest, []) if other is not offer]
        if left:
            self._by_digest[digest] = left
        else:
            self._by_digest.pop(digest, None)
        offer.retire()

    def close(self) -> None:
        """Retire everything."""
        for offers in list(self._by_digest.values()):
            for offer in list(offers):
                self.retire(offer)

    def find(self, digest: bytes) -> Offer:
        """Return the payload with this digest.

        Raises:
            NotFoundError: it is not offered now.
        """
        found = self._by_digest.get(digest)
        if not found:
            raise NotFoundError(f"payload {digest.hex()[:16]!r} is not offered now: ask for those of the last task")
        return found[0]

    async def pull(self, offer: Offer, offset: int) -> AsyncGenerator[bytes, None]:
        """Yield a payload's pieces from an offset on, each an encoded `PullModelReply`.

        Raises:
            MalformedMessageError: the offset is beyond the end.
            StorageError: the disk failed.
        """
        total = offer.payload.encoded_bytes
        if offset > total:
            raise MalformedMessageError(f"offset {offset} is beyond the payload's {total} bytes")
        self._metrics.transfers_total.labels("out", "call").inc()
        self._pulls += 1
        ahead: asyncio.Future[bytes] | None = None
        with offer.pulled():
            try:
                ahead, offset = self._read_ahead(offer, offset, FIRST_CHUNK_BYTES)
                while ahead is not None:
                    reply = await asyncio.shield(ahead)
                    ahead, offset = self._read_ahead(offer, offset)
                    yield reply
            finally:
                self._pulls -= 1
                if ahead is not None:
                    # The thread still reads: the file must stay open until it is done.
                    await asyncio.wait({ahead})

    async def send(self, offer: Offer, offset: int, ticket: Ticket, lines: BulkServer) -> None:
        """Send a payload from an offset on over the line that a ticket of `lines` gets, to its end.

        Raises:
            TransportError: nobody said the ticket in time, or the line was cut.
            StorageError: the disk failed.
        """
        line = await ticket.line
        self._metrics.transfers_total.labels("out", "line").inc()
        await lines.carry(line, functools.partial(offer.send, offset, line))

    def _read_ahead(
        self, offer: Offer, offset: int, most: int = CHUNK_BYTES
    ) -> tuple[asyncio.Future[bytes] | None, int]:
        """Begin to read the piece at an offset; return it, None at the end, and where the next one begins."""
        most = most if self._pulls <= FEW_PULLS else SMALL_PIECE_BYTES
        size = min(most, offer.payload.encoded_bytes - offset)
        if not size:
            return None, offset
        return offer.piece(offset, size, self._pool), offset + size


def fill_task(task: pb.Task, offers: Sequence[Offer]) -> None:
    """Name payloads in a task, and put the small ones inside."""
    for offer in offers:
        task.payloads.append(payload_to_proto(offer.payload))
        if offer.inline is not None:
            task.inline.append(pb.InlinePayload(digest=offer.payload.digest or b"", data=offer.inline))
