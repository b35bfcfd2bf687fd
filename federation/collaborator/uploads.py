"""Sending a finished update until the aggregator has it: resumed where it was cut, the same bytes each time.

1. Where the aggregator takes them, a small update goes through the session, whole, in one message. It is answered by
   its verdict, or by a refusal; should the session be cut before, the aggregator asks again, and it is sent again.
   All other updates have a call of their own, as follows.
2. Header first, with the id that was stored with the update: what the server holds counts for the same id only.
3. Small updates are sent whole at once; for larger ones the server's word on what it holds comes first.
4. Where the server gives a ticket, what is missing goes over a line of its own (`federation.transport.bulk`), read and
   checked a block at a time, while the call is watched: a refusal ends the line. If no line is to be had,
   the next call takes no ticket.
5. Chunks are read at positions, a few ahead of the one on the wire, and checked if the update was not checked before
   (`federation.collaborator.protection`); then its digests, as far as they were taken. A large update has none yet: the
   aggregator takes it, and tells it once the update is admitted (docs/adr/0014-the-receiver-digests-an-update.md).
6. A cut, or a server that is busy or has not asked yet, means again after a delay, which a new connection ends at once.
   An aggregator that was restarted asks its sites anew: being asked again ends the delay too, unless the server is
   busy. A newer asking or the verdict ends our trying. Any other refusal is final for this update.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from federation.collaborator import exchange as files
from federation.collaborator.protection import OutgoingPayload
from federation.errors import (
    FederationError,
    LimitError,
    MalformedMessageError,
    Refusal,
    TransportError,
    UpdateRejectedError,
)
from federation.runtime.backoff import Backoff
from federation.runtime.batches import BATCH_BYTES
from federation.runtime.clock import pause
from federation.runtime.threads import in_thread, started
from federation.transport.lines import NoLineError
from federation.v1 import aggregator_pb2
from federation.wire.chunks import CHUNK_BYTES, LEAST_CHUNK_BYTES, cut
from federation.wire.payloads import INLINE_BYTES
from federation.wire.pieces import read_update_message
from federation.wire.schemas import check_digest

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence

    from federation.collaborator.link import Link, LinkHolder
    from federation.names import Digest
    from federation.runtime.clock import Clock
    from federation.storage.retained import RetainedUpdate
    from federation.telemetry.metrics import Metrics
    from federation.tensors import TensorSchema
    from federation.transport.lines import Line
    from federation.transport.methods import BidiCall

_STATUS_S = 2.0
"""How long the call that a cut line belongs to may take to say why."""
NOT_YET = frozenset({Refusal.NOT_ASKED, Refusal.STALE_EPOCH})
"""Refusals of an aggregator that was restarted and has not come as far as we have."""


@dataclass(slots=True, kw_only=True)
class Uploads:
    """Sends updates.

    Attributes:
        links: connection to the aggregator.
        metrics: bytes sent, and transfers begun.
        clock: for the delay after a cut.
        schemas: layout of each payload that travels as it is.
    """

    links: LinkHolder
    metrics: Metrics
    clock: Clock
    schemas: Mapping[str, TensorSchema]
    _asked: asyncio.Event = field(default_factory=asyncio.Event)

    def asked_again(self) -> None:
        """Note that the aggregator asks anew for the update that is being sent."""
        self._asked.set()

    async def push(self, update: RetainedUpdate) -> tuple[Digest, ...] | None:
        """Send `update`; return what the aggregator says the digests of its payloads are, now that it is admitted.

        Empty: it was admitted before. None: it went through the session, and its verdict, or a refusal, will tell.

        Raises:
            UpdateRejectedError: it was refused; sending it again would not help.
            FederationError: likewise, for another reason (the round is over, the site is not of the experiment).
            TaskError: the trainer took the files away, changed their size, or wrote what may not leave.
        """
        backoff = Backoff()
        with contextlib.ExitStack() as stack:
            sources = [
                OutgoingPayload(
                    stack.enter_context(_opened(files.open_result(file.path, file.nbytes))),
                    file.payload,
                    self.schemas[file.payload] if file.digest is None else None,
                )
                for file in update.files
            ]
            while True:
                link = await self.links.get()
                self._asked.clear()  # before the sending: an asking may overtake the refusal of what it asks for
                if link.takes_updates and _is_small(update):
                    if await self._say(link, update, sources):
                        digests = None
                        break
                    continue
                is_busy = False
                try:
                    digests = await self._send(link, update, sources)
                    break
                except TransportError:
                    pass
                except LimitError:
                    is_busy = True
                except UpdateRejectedError as error:
                    if error.refusal not in NOT_YET:
                        raise
                news = [self.links.replaced(link)] if is_busy else [self.links.replaced(link), self._asked.wait()]
                if await pause(self.clock, backoff.next_s(), *news):
                    backoff.reset()
        for file in update.files:
            self.metrics.payload_bytes_total.labels("out", file.payload).inc(file.nbytes)
        return digests

    async def _say(self, link: Link, update: RetainedUpdate, sources: Sequence[OutgoingPayload]) -> bool:
        """Send an update through the session; False if it must be sent again, as it was asked for meanwhile."""
        header = aggregator_pb2.UpdateHeader.FromString(update.header)
        header.epoch = link.epoch
        message = aggregator_pb2.WholeUpdate(
            header=header,
            payloads=[source.pread(0, file.nbytes) for file, source in zip(update.files, sources, strict=True)],
            commit=_commit(update),
        )
        await self.links.say(aggregator_pb2.ParticipateRequest(update=message))
        # Whatever became of it: if this session went on, it has arrived; if not, the next one asks for it, or just did.
        return not self._asked.is_set()

    async def _send(self, link: Link, update: RetainedUpdate, sources: Sequence[OutgoingPayload]) -> tuple[Digest, ...]:
        header = aggregator_pb2.UpdateHeader.FromString(update.header)
        header.epoch = link.epoch  # the session's; round, attempt and model say what it answers
        call = link.stub.bidi("PushUpdate")
        try:
            # Should a write not be taken, the next read raises what the server says.
            bulk = link.usable_bulk
            await call.try_write(aggregator_pb2.PushUpdateRequest(header=header, takes_ticket=bulk is not None))
            holding = None
            offsets: Sequence[int] = [0] * len(update.files)
            chunk_bytes = CHUNK_BYTES
            if not _is_small(update):
                holding = await _holding(call, update)
                if holding.admitted:
                    return ()
                offsets = holding.bytes
                chunk_bytes = _chunk_bytes(holding)
                if bulk is not None and holding.ticket:
                    work = functools.partial(self._write_over, update, sources, offsets)
                    missing = sum(file.nbytes for file in update.files) - sum(offsets)
                    reply = await _watched(call, bulk.carry(holding.ticket, missing, work), _commit(update))
                    return await _result(call, update, reply)
            self.metrics.transfers_total.labels("out", "call").inc()
            await self._send_payloads(call, update, _pieces(update, sources, offsets, chunk_bytes))
            if holding is None:
                holding = await _holding(call, update)
                if holding.admitted:
                    return ()
            return await _result(call, update, await call.read())
        finally:
            call.cancel()

    def _write_over(
        self, update: RetainedUpdate, sources: Sequence[OutgoingPayload], offsets: Sequence[int], line: Line
    ) -> None:
        """Send what is missing over a line; blocks, errors as `OutgoingPayload.pread` and `Line.send`."""
        self.metrics.transfers_total.labels("out", "line").inc()
        for file, source, offset in zip(update.files, sources, offsets, strict=True):
            line.send_from(source.pread, offset, file.nbytes)

    async def _send_payloads(self, call: BidiCall, update: RetainedUpdate, pieces: Iterator[bytes]) -> None:
        """Send what is missing and the commit; stops early, without an error, if the server ended the call."""
        # A small update is read where we are: a thread would cost more than the page cache does.
        if not await (_write_all(call, pieces) if _is_small(update) else _write_ahead(call, pieces)):
            return
        await call.try_write(aggregator_pb2.PushUpdateRequest(commit=_commit(update)))


async def _write_all(call: BidiCall, pieces: Iterable[bytes]) -> bool:
    """Send pieces; False if the server ended the call before the last."""
    for piece in pieces:
        if not await call.try_write(piece):
            return False
    return True


async def _write_ahead(call: BidiCall, pieces: Iterator[bytes]) -> bool:
    """Send pieces while a thread reads the next ones, a few at a time; False as `_write_all`."""

    def read() -> list[bytes]:
        batch: list[bytes] = []
        nbytes = 0
        while nbytes < BATCH_BYTES and (piece := next(pieces, None)) is not None:
            batch.append(piece)
            nbytes += len(piece)
        return batch

    batch = await in_thread(read)
    while batch:
        async with started(read) as reading:
            if not await _write_all(call, batch):
                return False
            batch = await asyncio.shield(reading)
    return True


def read_refusal(message: aggregator_pb2.UpdateResult) -> Refusal | None:
    """Return why an update in the session was refused; None: for a reason that is not the update's.

    Raises:
        MalformedMessageError: it names no reason there is.
    """
    if not message.reason:
        return None
    try:
        return Refusal(message.reason)
    except ValueError as error:
        raise MalformedMessageError(f"{message.reason[:64]!r} is no reason to refuse an update") from error


def _commit(update: RetainedUpdate) -> aggregator_pb2.UpdateCommit:
    return aggregator_pb2.UpdateCommit(digests=[file.digest or b"" for file in update.files])


def _is_small(update: RetainedUpdate) -> bool:
    return sum(file.nbytes for file in update.files) <= INLINE_BYTES


def _chunk_bytes(holding: aggregator_pb2.UpdateHolding) -> int:
    """Return how large our pieces are: as the server would like, but no crumbs, which servers refuse too."""
    return min(CHUNK_BYTES, max(LEAST_CHUNK_BYTES, holding.piece_bytes)) if holding.piece_bytes else CHUNK_BYTES


def _pieces(
    update: RetainedUpdate, sources: Sequence[OutgoingPayload], offsets: Sequence[int], chunk_bytes: int
) -> Iterator[bytes]:
    """Yield what is missing, as encoded `PushUpdateRequest` messages."""
    for index, (file, source, offset) in enumerate(zip(update.files, sources, offsets, strict=True)):
        for position, size in cut(file.nbytes, offset, chunk_bytes=chunk_bytes):
            yield read_update_message(source.pread, index, position, size)


async def _watched(call: BidiCall, sending: Coroutine[Any, Any, None], commit: aggregator_pb2.UpdateCommit) -> Any:
    """Send over a line, then the commit, and return the next reply; whatever the call ends with ends the sending.

    Raises:
        FederationError: what the call ended with; else as `sending`.
    """
    reading = asyncio.ensure_future(call.read())
    task = asyncio.ensure_future(sending)
    try:
        await asyncio.wait({reading, task}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            error = task.exception()
            if isinstance(error, TransportError) and not isinstance(error, NoLineError):
                # Why it was cut the call may know, in a moment.
                await asyncio.wait({reading}, timeout=_STATUS_S)
            elif error is None:
                await call.try_write(aggregator_pb2.PushUpdateRequest(commit=commit))
                return await reading
        if not reading.done():
            await task
        reply = await reading
        if reply is not None:
            raise MalformedMessageError("the aggregator gave a result before it had all of the update")
        raise TransportError("the aggregator ended the upload without a result")
    finally:
        for each in (task, reading):
            each.cancel()
        await asyncio.gather(task, reading, return_exceptions=True)


async def _holding(call: BidiCall, update: RetainedUpdate) -> aggregator_pb2.UpdateHolding:
    reply = await call.read()
    if reply is None or reply.WhichOneof("message") != "holding":
        raise MalformedMessageError("the aggregator did not first say how much of the update it holds")
    holding: aggregator_pb2.UpdateHolding = reply.holding
    if not holding.admitted and (
        len(holding.bytes) != len(update.files)
        or any(held > file.nbytes for held, file in zip(holding.bytes, update.files, strict=True))
    ):
        raise MalformedMessageError(
            f"the aggregator says it holds {list(holding.bytes)} bytes of payloads that have "
            f"{[file.nbytes for file in update.files]}"
        )
    return holding


async def _result(
    call: BidiCall, update: RetainedUpdate, reply: aggregator_pb2.PushUpdateReply | None
) -> tuple[Digest, ...]:
    """Read to the result, and to the end after it; a refusal is the error that the call ends with.

    Args:
        call: the upload.
        update: what was sent.
        reply: the first after it.

    Returns:
        The digests it gives.

    Raises:
        MalformedMessageError: it does not admit, or gives digests of something else.
    """
    while True:
        if reply is None:
            raise TransportError("the aggregator ended the upload without a result")
        if reply.WhichOneof("message") == "result":
            if not reply.result.admitted:
                raise MalformedMessageError(f"an update was not admitted without a status: {reply.result.detail[:500]}")
            # Who leaves now cancels the call, and the aggregator's metrics would show a failure. That it ended badly
            # after the result changes nothing.
            with contextlib.suppress(FederationError):
                await call.read()
            digests = reply.result.digests
            if digests and len(digests) != len(update.files):
                raise MalformedMessageError(f"{len(digests)} digests of an update of {len(update.files)} payloads")
            return tuple(check_digest(digest, f"payload {index}") for index, digest in enumerate(digests))
        reply = await call.read()


@contextlib.contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
