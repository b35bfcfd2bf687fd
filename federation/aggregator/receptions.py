"""Updates being received: where their pieces go, and every check of their bytes. Each outlives a cut stream.

Rules, in order:

1. A site has one, for the update it announced last (round, attempt, id); what it sends under another key begins anew.
2. Pieces are taken until the commit. Those of a large update wait for its turn (`federation.aggregator.turns`), and a
   thread checks the last few while the next are received; a small update is sent whole at once, and all that is done
   with it is done in place, the two short writes into files that are there already too: each way to a thread and back
   costs more than they do.
3. Over a line of its own (`federation.transport.bulk`) what is missing of a large update is taken block by block by one
   thread, and waits for no turn; then the commit comes in the call.
4. Pieces in a call are not shorter than `LEAST_CHUNK_BYTES`, but for the last of a payload: each costs us a message.
5. Order, finite-ness and norm as they arrive (`federation.wire.reception`), digests at the end; what is
   compressed is decoded once, for its norm.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.errors import MalformedMessageError, TransportError
from federation.runtime.batches import Batches
from federation.storage.spool import UpdateKey
from federation.wire.chunks import LEAST_CHUNK_BYTES
from federation.wire.payloads import DELTA, IDENTITY_CODEC, INLINE_BYTES
from federation.wire.pieces import MessagePiece
from federation.wire.reception import PayloadReception, check_decoded
from federation.wire.updates import UpdateAnnouncement, commit_from_proto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from federation.aggregator.turns import Turn
    from federation.names import Attempt, Digest, RoundNumber, SiteName
    from federation.plan import PayloadPlan
    from federation.runtime.clock import Clock
    from federation.storage.spool import Spool, SpooledUpdate
    from federation.telemetry.metrics import Metrics
    from federation.transport.bulk import BulkServer, Ticket
    from federation.transport.lines import Line
    from federation.v1 import aggregator_pb2 as pb

    Request = pb.PushUpdateRequest | MessagePiece
    Asking = tuple[RoundNumber, Attempt]


@dataclass(eq=False, slots=True)
class Reception:
    """An update being received.

    Attributes:
        announcement: its header.
        update: its place in the spool.
        payloads: in the order of the header.
        began: monotonic time of its first stream, seconds.
        is_small: it is sent whole at once, before its sender learns what is held.
    """

    announcement: UpdateAnnouncement
    update: SpooledUpdate
    payloads: list[PayloadReception]
    began: float
    is_small: bool

    @property
    def held(self) -> list[int]:
        """Bytes of each payload that are checked and stored."""
        return [payload.held for payload in self.payloads]

    @property
    def missing(self) -> int:
        """Bytes that are still to come."""
        return sum(payload.payload.encoded_bytes - payload.held for payload in self.payloads)


class Receptions:
    """The updates being received, one a site.

    Args:
        plans: payloads of every update, in order.
        spool: where they go.
        disk: the thread in which what may wait for the disk is done.
        pool: threads that check pieces.
        lines: over which large updates come.
        clock: measures transfers.
        metrics: counts bytes and transfers.
    """

    def __init__(
        self,
        plans: Sequence[PayloadPlan],
        spool: Spool,
        *,
        disk: Executor,
        pool: Executor,
        lines: BulkServer,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._plans = plans
        self._spool = spool
        self._disk = disk
        self._pool = pool
        self._lines = lines
        self._clock = clock
        self._metrics = metrics
        self._of: dict[SiteName, Reception] = {}

    async def begin(self, site: SiteName, announcement: UpdateAnnouncement) -> Reception:
        """Return the reception of an announced update: the one that was cut, or a new one.

        Raises:
            StorageError: there is no room for it.
        """
        sizes = [payload.encoded_bytes for payload in announcement.payloads]
        is_small = sum(sizes) <= INLINE_BYTES
        key, header = key_of(site, announcement), announcement.to_bytes()
        if is_small:
            update = self._spool.begin(key, sizes, header)
        else:
            update = await self._on_disk(self._spool.begin, key, sizes, header)
        reception = self._of.get(site)
        if reception is None or reception.update is not update:
            payloads = [
                PayloadReception(payload, plan.schema, sink)
                for payload, plan, sink in zip(announcement.payloads, self._plans, update.payloads, strict=True)
            ]
            reception = Reception(announcement, update, payloads, self._clock.monotonic(), is_small)
            self._of[site] = reception
        return reception

    async def read_line(
        self, reception: Reception, requests: AsyncIterator[Request], ticket: Ticket
    ) -> pb.UpdateCommit:
        """Take what is missing over the ticket's line, then the commit.

        Raises:
            TransportError: the line, or the stream after it, ended before.
            MalformedMessageError, UpdateRejectedError, StorageError: as `PayloadReception.accept`.
        """
        line = await ticket.line
        self._metrics.transfers_total.labels("in", "line").inc()
        await self._lines.carry(line, functools.partial(self._take_all, reception, line))
        request = await anext(requests, None)
        if request is None:
            raise TransportError("the upload ended before its commit: resume it")
        commit = _content(request)
        if isinstance(commit, MessagePiece):
            raise MalformedMessageError("expected the commit, as all bytes came over the line; got a chunk")
        return commit

    async def read(self, reception: Reception, turn: Turn, requests: AsyncIterator[Request]) -> pb.UpdateCommit:
        """Take pieces until the commit, a few ahead of the thread that checks them.

        Raises:
            TransportError: the stream ended before.
            MalformedMessageError, UpdateRejectedError, StorageError: as `PayloadReception.accept`.
        """
        checks: Batches[MessagePiece] = Batches(functools.partial(self._accept_all, reception), self._pool)
        turn.when_lost = checks.hurry
        commit: pb.UpdateCommit | None = None
        try:
            while commit is None and (request := await _next(reception, turn, requests)) is not None:
                content = _content(request)
                if not isinstance(content, MessagePiece):
                    commit = content
                elif reception.is_small:
                    _check_piece(reception, content)
                    self._accept_all(reception, [content])
                else:
                    nbytes = _check_piece(reception, content)
                    turn.count(nbytes)
                    await checks.put(content, nbytes, at_once=not turn.is_held)
                del request, content  # a piece of each upload that waits for its turn would be held, else
            await checks.finish()
        finally:
            await checks.settle()  # it writes into the spool: nobody else may before it is done
        if commit is None:
            raise TransportError("the upload ended before its commit: resume it")
        return commit

    async def finish(self, reception: Reception, commit: pb.UpdateCommit) -> tuple[tuple[Digest, ...], float]:
        """Check that an update is whole; return the digests of its payloads and the norm of its parameter change.

        Raises:
            MalformedMessageError: the commit has not one digest a payload.
            UpdateRejectedError: TRUNCATED, CORRUPT, WRONG_CODEC or NOT_FINITE.
        """
        said = commit_from_proto(commit, len(reception.payloads))
        digests = tuple(payload.finish(each) for payload, each in zip(reception.payloads, said, strict=True))
        norm = reception.payloads[0].norm
        for plan, stored in zip(self._plans, reception.update.payloads, strict=True):
            if plan.codec != IDENTITY_CODEC:
                check = functools.partial(check_decoded, plan, stored)
                is_short = reception.is_small and plan.schema.nbytes <= INLINE_BYTES
                found = check() if is_short else await asyncio.get_running_loop().run_in_executor(self._pool, check)
                norm = found if plan.name == DELTA else norm
        return digests, norm

    async def admit(self, reception: Reception, digests: Sequence[Digest], facts: dict[str, Any]) -> None:
        """Let a whole, checked update count.

        Raises:
            StorageError: the disk refused; it does not count.
        """
        if reception.is_small:
            self._spool.admit(reception.update, digests, facts)
        else:
            await self._on_disk(self._spool.admit, reception.update, digests, facts)

    def keep_only(self, but: Mapping[SiteName, Asking]) -> None:
        """Forget all but those that answer the task their site goes on with."""
        self._of = {site: kept for site, kept in self._of.items() if but.get(site) == asking_of(kept.announcement)}

    def forget(self, site: SiteName) -> None:
        """Forget a site's: it is admitted."""
        self._of.pop(site, None)

    async def give_up(self, site: SiteName, announcement: UpdateAnnouncement) -> None:
        """Throw away what was received of an announced update, so that it cannot be resumed."""
        reception = self._of.get(site)
        if reception is not None and reception.update.key == key_of(site, announcement):
            del self._of[site]
            await self._on_disk(self._spool.discard, reception.update)

    def _accept_all(self, reception: Reception, pieces: Sequence[MessagePiece]) -> None:
        for piece in pieces:
            payload = reception.payloads[piece.payload]
            if reception.is_small and piece.offset < payload.held:
                continue  # a small upload is sent whole at once, before its sender learns what is held
            before = payload.held
            payload.accept(piece)
            self._metrics.payload_bytes_total.labels("in", payload.payload.name).inc(payload.held - before)

    def _take_all(self, reception: Reception, line: Line) -> None:
        """Take what is missing of each payload, in order, from a line; blocks."""
        for index, payload in enumerate(reception.payloads):
            for block in line.receive(payload.payload.encoded_bytes - payload.held):
                self._accept_all(reception, [MessagePiece(payload.held, block, index)])

    async def _on_disk(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)


def asking_of(announcement: UpdateAnnouncement) -> Asking:
    """Return the task an announced update answers."""
    return (announcement.round, announcement.attempt)


def key_of(site: SiteName, announcement: UpdateAnnouncement) -> UpdateKey:
    """Return the key an announced update has in the spool."""
    return UpdateKey(
        site=site, round=announcement.round, attempt=announcement.attempt, update_id=announcement.update_id
    )


async def _next(reception: Reception, turn: Turn, requests: AsyncIterator[Request]) -> Request | None:
    if reception.is_small:
        return await anext(requests, None)
    return await turn.read(requests)


def _check_piece(reception: Reception, piece: MessagePiece) -> int:
    """Return the size of a piece, bytes; what it says of itself is checked here, the rest with its content.

    Raises:
        MalformedMessageError: it is of no announced payload, or too short to be worth a message.
    """
    if piece.payload >= len(reception.payloads):
        raise MalformedMessageError("expected a chunk of an announced payload, or the commit")
    nbytes = len(piece.data)
    payload = reception.payloads[piece.payload].payload
    if nbytes < LEAST_CHUNK_BYTES and piece.offset + nbytes != payload.encoded_bytes:
        raise MalformedMessageError(
            f"chunk of {nbytes} bytes at offset {piece.offset} of payload {payload.name}; expected at least "
            f"{LEAST_CHUNK_BYTES}, but for the last: send larger pieces"
        )
    return nbytes


def _content(request: Request) -> MessagePiece | pb.UpdateCommit:
    """Return what a message after the header holds.

    Raises:
        MalformedMessageError: another header, or nothing.
    """
    if isinstance(request, MessagePiece):
        return request
    kind = request.WhichOneof("message")
    if kind == "commit":
        return request.commit
    if kind != "chunk":
        raise MalformedMessageError("expected a chunk of an announced payload, or the commit")
    chunk = request.chunk.chunk
    return MessagePiece(chunk.offset, memoryview(chunk.data), request.chunk.payload)
