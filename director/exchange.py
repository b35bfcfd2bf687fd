"""Files in and out: downloads, bundles for envoys, artifacts from aggregators; chunk by chunk, O(chunk) of memory.

Rules, in order:

1. A download begins at the caller's offset. Resuming names the digest of what was begun; if the artifact has been
   replaced since, that is refused rather than glued together.
2. The bundle goes to envoys that were asked and have not refused, to nobody else.
3. An aggregator stores artifacts of its own experiment only, while it is not over. An artifact appears whole, after
   size and SHA-256 were compared with what its sender announced, or not at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

from director import lifecycle, views
from director.desk import find_visible
from director.intake import BUNDLE, MODEL, SPEC
from director.sessions import first
from director.store import artifacts, events, experiments, sites
from director.store.records import ArtifactRecord
from federation.errors import ConflictError, IdentityError, LimitError, MalformedMessageError, NotFoundError
from federation.names import Digest, ExperimentId
from federation.v1 import director_pb2 as pb
from federation.wire.chunks import ChunkReceiver, read_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from prometheus_client import Counter
    from sqlalchemy.orm import Session

    from director.store.database import Database
    from federation.runtime.clock import Clock
    from federation.storage.artifacts import ArtifactStore, ArtifactWriter
    from federation.telemetry.metrics import Metrics
    from federation.transport.calls import Call
    from federation.v1.tensors_pb2 import Chunk

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_GIVEN = frozenset({BUNDLE, MODEL, SPEC})


class Exchange:
    """Moves files.

    Args:
        database: which artifacts there are.
        store: where they lie.
        clock: for times.
        most_bytes: largest artifact an aggregator may store, bytes.
        metrics: counts the bytes, as payloads ``artifact`` and ``bundle``: an artifact's name is its sender's choice.
    """

    def __init__(
        self, *, database: Database, store: ArtifactStore, clock: Clock, most_bytes: int, metrics: Metrics
    ) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        self._most_bytes = most_bytes
        self._moved = metrics.payload_bytes_total

    async def download(
        self, request: pb.DownloadArtifactRequest, call: Call
    ) -> AsyncIterator[pb.DownloadArtifactReply]:
        """Stream an artifact; its description comes first."""
        record = await find_visible(self._database, request.experiment, call)
        artifact = await self._database.relaxed(artifacts.get, record.id, request.name)
        if request.digest and request.digest != artifact.digest:
            raise ConflictError(
                f"{artifact.name} was replaced since the download began (it is of round {artifact.round} now): "
                "begin again from offset 0"
            )
        yield pb.DownloadArtifactReply(artifact=views.artifact(artifact))
        async with aclosing(self._chunks(record.id, artifact.name, request.offset)) as chunks:
            async for chunk in chunks:
                yield pb.DownloadArtifactReply(chunk=chunk)
                self._moved.labels("out", "artifact").inc(len(chunk.data))

    async def fetch_bundle(self, request: pb.FetchBundleRequest, call: Call) -> AsyncIterator[pb.FetchBundleReply]:
        """Stream a bundle to an envoy that was asked to take part."""
        site = call.peer.identity.name
        part = await self._database.relaxed(sites.participation, request.experiment, site)
        if part is None or part.answer == sites.REFUSED:
            raise NotFoundError(f"site {site} is not assigned to experiment {request.experiment[:80]!r}")
        async with aclosing(self._chunks(part.experiment, BUNDLE, request.offset)) as chunks:
            async for chunk in chunks:
                yield pb.FetchBundleReply(chunk=chunk)
                self._moved.labels("out", "bundle").inc(len(chunk.data))

    async def upload(self, requests: AsyncIterator[pb.UploadArtifactRequest], call: Call) -> pb.UploadArtifactReply:
        """Store an artifact of the caller's experiment."""
        experiment = ExperimentId(call.peer.identity.name)
        announced = (await first(requests, "artifact")).artifact
        self._check_announced(announced)
        found = await self._database.relaxed(experiments.get, experiment)
        if found.state not in lifecycle.ACTIVE:
            raise ConflictError(f"experiment {experiment} is {found.state.value}: it takes no more artifacts")
        writer = await asyncio.to_thread(self._store.create, experiment, announced.name)
        try:
            await _receive(requests, announced, writer, self._moved.labels("in", "artifact"))
            await asyncio.to_thread(writer.commit)
        finally:
            await asyncio.shield(asyncio.to_thread(writer.abort))  # nothing after a commit
        record = ArtifactRecord(
            name=announced.name, bytes=announced.bytes, digest=announced.digest, round=announced.round
        )
        await self._database.transact(_record, experiment, record, self._clock.now())
        return pb.UploadArtifactReply(artifact=views.artifact(record))

    def _check_announced(self, announced: pb.Artifact) -> None:
        if not _NAME.fullmatch(announced.name) or ".." in announced.name:
            raise MalformedMessageError(f"artifact name {announced.name[:80]!r} is not valid")
        if announced.name in _GIVEN:
            raise IdentityError(f"{announced.name} is part of what was submitted and cannot be replaced")
        if announced.bytes > self._most_bytes:
            raise LimitError(f"{announced.name} has {announced.bytes} bytes, at most {self._most_bytes} are taken")
        if not re.fullmatch("[0-9a-f]{64}", announced.digest):
            raise MalformedMessageError(f"{announced.name} needs its SHA-256 in hex, got {announced.digest[:80]!r}")

    async def _chunks(self, experiment: ExperimentId, name: str, offset: int) -> AsyncGenerator[Chunk, None]:
        reader = await asyncio.to_thread(self._store.open, experiment, name)
        try:
            pieces: Iterator[Chunk] = read_chunks(reader.pread, reader.nbytes, offset)
            while (chunk := await asyncio.to_thread(next, pieces, None)) is not None:
                yield chunk
        finally:
            reader.close()


async def _receive(
    requests: AsyncIterator[pb.UploadArtifactRequest], announced: pb.Artifact, writer: ArtifactWriter, received: Counter
) -> None:
    receiver = ChunkReceiver(announced.bytes, hashlib.sha256)
    async for request in requests:
        got = request.WhichOneof("message")
        if got != "chunk":
            raise MalformedMessageError(f"after its description come an artifact's chunks, not {got}")
        await asyncio.to_thread(_keep, receiver, request.chunk, writer)
        received.inc(len(request.chunk.data))
    receiver.finish(Digest(bytes.fromhex(announced.digest)))


def _keep(receiver: ChunkReceiver, chunk: Chunk, writer: ArtifactWriter) -> None:
    writer.write(receiver.accept(chunk))


def _record(session: Session, experiment: ExperimentId, record: ArtifactRecord, now: float) -> None:
    artifacts.record(session, experiment, record, now)
    of_round = f" of round {record.round}" if record.round else ""
    events.append_text(session, experiment, kind="artifact", text=f"{record.name}{of_round} is stored", at=now)
