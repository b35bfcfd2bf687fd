"""Getting a payload: from the task itself if it is small, else by `PullModel`, resumed where it was cut.

What the aggregator gives a ticket for comes over a line of its own (`federation.transport.bulk`), else in the call. The
whole is checked by its BLAKE3 digest before a trainer sees it; pieces come as they were sent, over TLS. What the
site holds already, by digest, is not fetched again. A model that a step leads to, from one that the site holds, is made
from the step, and is that model if its digest says so; if not, or without the model before, it is fetched whole. Memory
is a few chunks.
"""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.collaborator import exchange as files
from federation.collaborator.stepping import make_model
from federation.errors import LimitError, MalformedMessageError, StorageError, TransportError
from federation.runtime.backoff import Backoff
from federation.runtime.batches import Batches
from federation.runtime.clock import pause
from federation.runtime.threads import in_thread
from federation.tensors.digest import payload_digest
from federation.v1 import aggregator_pb2
from federation.wire.chunks import ChunkReceiver
from federation.wire.pieces import MessagePiece, read_model_piece

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from federation.collaborator.exchange import Exchange
    from federation.collaborator.link import Link, LinkHolder
    from federation.collaborator.tasks import StepOrder
    from federation.names import Digest, ExperimentId
    from federation.plan import ExperimentSpec
    from federation.runtime.clock import Clock
    from federation.telemetry.metrics import Metrics
    from federation.transport.lines import Line
    from federation.wire.chunks import Piece
    from federation.wire.payloads import Payload

_MAX_DAMAGED = 5
_STORED_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Downloads:
    """Fetches payloads into the exchange folder.

    Attributes:
        experiment: id.
        exchange: where payloads go.
        spec: the signed spec.
        links: connection to the aggregator.
        metrics: bytes fetched, and transfers begun.
        clock: for the delay after a cut.
    """

    experiment: ExperimentId
    exchange: Exchange
    spec: ExperimentSpec
    links: LinkHolder
    metrics: Metrics
    clock: Clock

    async def model(self, payload: Payload, inline: Mapping[bytes, bytes], step: StepOrder | None = None) -> Path:
        """Return the exchange file that holds a model.

        Args:
            payload: checked descriptor, with digest.
            inline: payloads that came with the task, by digest.
            step: another way to the model; None: there is none.

        Raises:
            MalformedMessageError: what is sent is not what was announced.
            StorageError: the disk refused.
        """
        digest = _digest_of(payload)
        held = self.exchange.held_model(digest) if digest in inline else await self._find(digest, payload)
        if held is None and step is not None and digest not in inline:
            held = await self._take_step(payload, digest, step, inline)
        if held is not None:
            return held
        path = self.exchange.free_model_slot()
        await self._obtain(payload, digest, inline, path)
        self.exchange.keep_model(path, digest)
        return path

    async def single(self, name: str, payload: Payload, inline: Mapping[bytes, bytes]) -> Path:
        """Return one of the fixed exchange files, holding this payload; arguments and errors as `model`."""
        digest = _digest_of(payload)
        path = self.exchange.path(name)
        known = self.exchange.holds(name, digest)
        if not known and digest not in inline:
            known = await in_thread(self.exchange.find_held, name, digest, payload.encoded_bytes)
        if not known:
            self.exchange.forget(name)
            await self._obtain(payload, digest, inline, path)
            self.exchange.keep(name, digest)
        return path

    async def _find(self, digest: Digest, payload: Payload) -> Path | None:
        """Return the slot that holds a model of that digest, as large as `payload`; None if there is none."""
        held = self.exchange.held_model(digest)
        if held is None and self.exchange.has_unknown_models:
            # After a restart a slot may still hold it; reading it costs less than fetching it.
            held = await in_thread(self.exchange.find_held_model, digest, payload.encoded_bytes)
        return held

    async def _take_step(
        self, payload: Payload, digest: Digest, step: StepOrder, inline: Mapping[bytes, bytes]
    ) -> Path | None:
        """Return the slot with the model that the step leads to; None if it does not lead there from here."""
        start = await self._find(step.from_digest, payload)
        if start is None:
            return None
        change = await self.single(files.STEP, step.change, inline)
        buffers = None
        if step.buffers is not None:
            buffers = await self.single(files.STEP_BUFFERS, step.buffers, inline)
        path = self.exchange.free_model_slot()
        made = await in_thread(
            make_model,
            path,
            spec=self.spec,
            start=start,
            change=change,
            change_bytes=step.change.encoded_bytes,
            buffers=buffers,
        )
        if made != digest:
            # Its trainer can write here, or this machine computes otherwise than the server.
            _log.warning("the step did not lead to the model announced; fetching it whole")
            self.exchange.forget(files.STEP)
            return None
        self.exchange.keep_model(path, digest)
        return path

    async def _obtain(self, payload: Payload, digest: Digest, inline: Mapping[bytes, bytes], path: Path) -> None:
        descriptor = files.open_for_write(path, payload.encoded_bytes)
        try:
            if digest in inline:
                self._write_inline(payload, digest, inline[digest], descriptor)
            else:
                await self._pull(payload, digest, descriptor)
        finally:
            os.close(descriptor)
        self.metrics.payload_bytes_total.labels("in", payload.name).inc(payload.encoded_bytes)

    def _write_inline(self, payload: Payload, digest: Digest, data: bytes, descriptor: int) -> None:
        if len(data) != payload.encoded_bytes or payload_digest(data) != digest:
            raise MalformedMessageError(f"the task's own copy of payload {payload.name} is not the one it announces")
        os.pwrite(descriptor, data, 0)

    async def _pull(self, payload: Payload, digest: Digest, descriptor: int) -> None:
        """Fetch until it is whole, however often the line is cut; damage is not forgiven for ever."""
        receiver = ChunkReceiver(payload.encoded_bytes)
        backoff = Backoff()
        damaged = 0
        while True:
            link = await self.links.get()
            before = receiver.received
            try:
                try:
                    await self._pull_rest(link, receiver, digest, descriptor)
                except TransportError:
                    if not receiver.is_complete:
                        raise
                    # Cut after the last byte, as by a renewal: nothing is missing.
                receiver.finish(digest)
                return
            except (TransportError, LimitError) as error:
                if receiver.received > before:
                    backoff.reset()
                if receiver.is_complete:
                    damaged += 1
                    if damaged >= _MAX_DAMAGED:
                        raise MalformedMessageError(
                            f"payload {payload.name} came whole {damaged} times and was never the one announced"
                        ) from error
                    receiver = ChunkReceiver(payload.encoded_bytes)
                if await pause(self.clock, backoff.next_s(), self.links.replaced(link)):
                    backoff.reset()

    async def _pull_rest(self, link: Link, receiver: ChunkReceiver, digest: Digest, descriptor: int) -> None:
        """Fetch from where the receiver is; some chunks are checked and written while the next ones come."""
        bulk = link.usable_bulk
        request = aggregator_pb2.PullModelRequest(
            experiment=self.experiment, digest=digest, offset=receiver.received, takes_ticket=bulk is not None
        )
        has_begun = False
        storing: Batches[Piece] = Batches(functools.partial(_store_all, receiver, descriptor))
        try:
            async with link.stub.server_stream("PullModel", request, read=read_model_piece) as replies:
                async for reply in replies:
                    if bulk is not None and not isinstance(reply, MessagePiece) and reply.ticket:
                        store = functools.partial(self._store_from, receiver, descriptor)
                        await bulk.carry(reply.ticket, receiver.total - receiver.received, store)
                        continue
                    piece = reply if isinstance(reply, MessagePiece) else reply.chunk
                    if not has_begun:
                        self.metrics.transfers_total.labels("in", "call").inc()
                        has_begun = True
                    await storing.put(piece, len(piece.data))
            await storing.finish()
        finally:
            await storing.settle()  # should the line be cut, what came before is good

    def _store_from(self, receiver: ChunkReceiver, descriptor: int, line: Line) -> None:
        """Store what is missing, from a line; blocks.

        Raises:
            TransportError: it was cut.
            StorageError: the disk refused.
        """
        self.metrics.transfers_total.labels("in", "line").inc()
        for block in line.receive(receiver.total - receiver.received):
            _store(receiver, descriptor, MessagePiece(receiver.received, block))


def _store_all(receiver: ChunkReceiver, descriptor: int, chunks: Sequence[Piece]) -> None:
    for chunk in chunks:
        _store(receiver, descriptor, chunk)


def _store(receiver: ChunkReceiver, descriptor: int, chunk: Piece) -> None:
    """Check, digest and write a chunk; should the disk refuse, the receiver is of no further use."""
    data = memoryview(receiver.check(chunk))
    for start in range(0, len(data), _STORED_BYTES):
        view, position = data[start : start + _STORED_BYTES], receiver.received
        receiver.take(view)  # first: what the digest has read is then written out of the core's cache
        try:
            while view:
                written = os.pwrite(descriptor, view, position)
                view, position = view[written:], position + written
        except OSError as error:
            raise StorageError(f"a payload could not be written: {error.strerror or error}") from error


def _digest_of(payload: Payload) -> Digest:
    if payload.digest is None:
        raise ValueError(f"payload {payload.name} has no digest; read it with with_digest=True")
    return payload.digest
