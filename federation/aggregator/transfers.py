"""Files between aggregator and director: the spec and the initial model down, models and history up.

A cut transfer is tried again with backoff, a download from where it stopped; so is an upload for which the director has
no room. How long is the caller's to say: it cancels when its lease is over. What is fetched comes before there is a
session with the director, so here a cut is what says that the director is lost, and every piece that it is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, TypeVar

from federation.errors import StorageError, TransportError
from federation.names import Digest
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause
from federation.telemetry.logs import get_logger
from federation.v1 import director_pb2, tensors_pb2
from federation.wire.chunks import CHUNK_BYTES, ChunkReceiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from federation.names import ExperimentId
    from federation.rounds.events import Finish
    from federation.rounds.history import RoundRecord
    from federation.runtime.clock import Clock
    from federation.runtime.orphans import Lease
    from federation.transport.methods import Stub

_T = TypeVar("_T")


class Transfers:
    """Moves files.

    Args:
        connect: returns a stub of the Director service.
        experiment: whose files.
        lease: counts how long we are without a director.
        clock: times the backoff.
    """

    def __init__(self, connect: Callable[[], Stub], experiment: ExperimentId, lease: Lease, clock: Clock) -> None:
        self._connect = connect
        self._lease = lease
        self._experiment = experiment
        self._clock = clock
        self._log = get_logger(__name__).bind(experiment=experiment)

    async def fetch(self, name: str, path: Path) -> None:
        """Download an artifact, unless it is there already.

        Raises:
            FederationError: the director has none, or gives none to us.
        """
        if await asyncio.to_thread(path.exists):
            return
        temporary = path.with_name(f".{path.name}.part")
        with await asyncio.to_thread(temporary.open, "wb") as file:
            download = _Download(file)
            await self._persist(f"fetching {name}", lambda: self._fetch_rest(name, download))
        await asyncio.to_thread(temporary.replace, path)

    async def _fetch_rest(self, name: str, download: _Download) -> None:
        request = director_pb2.DownloadArtifactRequest(
            experiment=self._experiment, name=name, offset=download.received, digest=download.digest
        )
        try:
            async with self._connect().server_stream("DownloadArtifact", request) as replies:
                async for reply in replies:
                    self._lease.parent_found()
                    await asyncio.to_thread(download.accept, reply)
        except TransportError:
            self._lease.parent_lost()
            raise
        await asyncio.to_thread(download.finish)

    async def upload(
        self, name: str, path: Path, round_number: int, *, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """Upload an artifact; the director replaces an earlier one of that name.

        While the director has no room for it this waits: all rounds are over, and nothing is left but to keep them.

        Args:
            name: of the artifact.
            path: its file.
            round_number: round it is of; 0: of none.
            tell: told, once, that the director's storage does not take it.

        Raises:
            FederationError: the director does not take it, for another reason.
        """
        nbytes, digest = await asyncio.to_thread(_measure, path)
        artifact = director_pb2.Artifact(name=name, bytes=nbytes, digest=digest, round=round_number)

        has_told = False

        async def once() -> None:
            nonlocal has_told
            try:
                await self._connect().client_stream("UploadArtifact", _upload_requests(artifact, path))
            except StorageError as error:
                if not has_told:
                    has_told = True
                    tell(f"the director does not take {name}, and that is tried again: {error}")
                raise TransportError(str(error)) from error

        await self._persist(f"uploading {name}", once)  # by now the session tells whether the director is there
        self._log.info("artifact uploaded", artifact=name, bytes=nbytes)

    async def _persist(self, what: str, work: Callable[[], Awaitable[_T]]) -> _T:
        backoff = Backoff(first_s=0.1, most_s=10.0)
        while True:
            try:
                return await work()
            except TransportError as error:
                self._log.warning("transfer cut", what=what, reason=str(error))
                await pause(self._clock, backoff.next_s())


class _Download:
    """One file being downloaded, over any number of calls."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = ""
        self._file = file
        self._receiver: ChunkReceiver | None = None

    @property
    def received(self) -> int:
        return self._receiver.received if self._receiver else 0

    def accept(self, reply: director_pb2.DownloadArtifactReply) -> None:
        if self._receiver is None:
            self._receiver = ChunkReceiver(reply.artifact.bytes, hashlib.sha256)
            self.digest = reply.artifact.digest
        if reply.HasField("chunk"):
            self._file.write(self._receiver.accept(reply.chunk))

    def finish(self) -> None:
        if self._receiver is None:
            raise TransportError("the director sent nothing")
        self._receiver.finish(Digest(bytes.fromhex(self.digest)))
        self._file.flush()


def write_history(path: Path, experiment: ExperimentId, finish: Finish, records: Iterator[RoundRecord]) -> None:
    """Write ``history.json``: how the experiment ended, and every committed round. Blocks."""
    with path.open("w", encoding="utf-8") as file:
        head = {
            "experiment": experiment,
            "outcome": finish.outcome,
            "reason": finish.reason,
            "degraded": finish.is_degraded,
        }
        file.write(json.dumps(head)[:-1] + ', "rounds": [')
        for index, record in enumerate(records):
            file.write((",\n" if index else "\n") + json.dumps(record.to_json(), allow_nan=False))
        file.write("\n]}\n")


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


async def _upload_requests(
    artifact: director_pb2.Artifact, path: Path
) -> AsyncIterator[director_pb2.UploadArtifactRequest]:
    yield director_pb2.UploadArtifactRequest(artifact=artifact)
    offset = 0
    with await asyncio.to_thread(path.open, "rb") as file:
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield director_pb2.UploadArtifactRequest(chunk=tensors_pb2.Chunk(offset=offset, data=data))
            offset += len(data)
