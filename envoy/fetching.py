"""Getting a bundle from the director and opening it, once its manifest is believed.

A cut download goes on where it stopped, in this process or the next, after a delay that the next session with the
director ends; what is fetched is never larger than the manifest
says, nor than the owner allows. Archive and every file are checked against the manifest before anything can run.
"""

from __future__ import annotations

import asyncio
import shutil
from io import FileIO
from typing import TYPE_CHECKING, Any, Protocol

from federation.bundle import packing
from federation.errors import BundleError, LimitError, MalformedMessageError, TransportError
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause
from federation.storage.disk import translated, write_atomically
from federation.v1 import director_pb2

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from federation.bundle.manifest import Manifest
    from federation.runtime.clock import Clock
    from federation.telemetry.metrics import Metrics
    from federation.transport.methods import Stub

_ARCHIVE = "bundle.zip"
_FOLDER = "bundle"
_SPEC = "spec.json"
_MAX_DEFECTS = 3


class ConnectedDirector(Protocol):
    """Gives the calls of a connected director."""

    def __call__(self, other_than: Stub | None = None) -> Coroutine[Any, Any, Stub]:
        """Return them, once there is a session, and a later one than that of `other_than`."""


async def fetch(
    director: ConnectedDirector,
    experiment: str,
    manifest: Manifest,
    folder: Path,
    *,
    clock: Clock,
    metrics: Metrics,
) -> None:
    """Fetch the archive of `manifest` into `folder`; returns once it is whole, however often the line is cut.

    Args:
        director: gives the calls of a connected director.
        experiment: id.
        manifest: verified.
        folder: the experiment's folder.
        clock: for the delay between attempts.
        metrics: counts the bytes.

    Raises:
        BundleError: the director sends something else than the manifest says, again and again.
        PeerError: the director refuses.
        StorageError: the disk refused.
    """
    path = folder / _ARCHIVE
    backoff = Backoff()
    defects = 0
    while True:
        stub = await director()
        try:
            await _fetch_rest(stub, experiment, manifest.bundle_bytes, path, metrics)
            return
        except TransportError:
            pass  # the session is down or will be; what was fetched stays
        except MalformedMessageError as error:
            defects += 1
            if defects >= _MAX_DEFECTS:
                raise BundleError(f"the director does not send the bundle as announced: {error}") from error
        if await pause(clock, backoff.next_s(), director(stub)):
            backoff.reset()


def unpack(manifest: Manifest, folder: Path, max_bytes: int) -> None:
    """Check the archive, unpack it afresh and write the spec beside it; blocks.

    Args:
        manifest: verified.
        folder: the experiment's folder.
        max_bytes: most bytes the owner allows, unpacked.

    Raises:
        BundleError: archive and manifest do not agree; the archive is removed.
        StorageError: the disk refused.
    """
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
    archive = folder / _ARCHIVE
    try:
        packing.unpack(archive, manifest, folder / _FOLDER, packing.Limits(total_bytes=max_bytes))
        # Last, and whole or not at all: that it is there says that the bundle is.
        write_atomically(spec_file(folder), manifest.spec_json)
    finally:
        archive.unlink(missing_ok=True)


def spec_file(folder: Path) -> Path:
    """Where the verified spec lies."""
    return folder / _SPEC


def bundle_folder(folder: Path) -> Path:
    """Where the unpacked bundle lies."""
    return folder / _FOLDER


def is_ready(folder: Path) -> bool:
    """Tell whether bundle and spec lie there, checked; the spec is written last."""
    return bundle_folder(folder).is_dir() and spec_file(folder).is_file()


def check_size(manifest: Manifest, announced: int, max_bytes: int) -> None:
    """Check the size of a bundle, packed and unpacked, before any of it is fetched.

    Raises:
        BundleError: director and manifest disagree, or it declares files that no bundle may hold or too many bytes.
        LimitError: it is larger than the owner allows.
    """
    if announced != manifest.bundle_bytes:
        raise BundleError(f"the director announces a bundle of {announced} bytes, signed are {manifest.bundle_bytes}")
    if announced > max_bytes:
        raise LimitError(f"the bundle has {announced} bytes; this site takes at most {max_bytes}")
    packing.check_manifest(manifest, packing.Limits(total_bytes=max_bytes))


async def _fetch_rest(stub: Stub, experiment: str, total: int, path: Path, metrics: Metrics) -> None:
    received = metrics.payload_bytes_total.labels("in", "bundle")
    with await asyncio.to_thread(_open_to_append, path, total) as file:
        offset = file.tell()
        request = director_pb2.FetchBundleRequest(experiment=experiment, offset=offset)
        async with stub.server_stream("FetchBundle", request) as replies:
            async for reply in replies:
                data = _checked(reply, offset, total)
                await asyncio.to_thread(_append, file, path, data)
                offset += len(data)
                received.inc(len(data))
        if offset != total:
            raise TransportError(f"the bundle ended after {offset} of {total} bytes")


def _open_to_append(path: Path, total: int) -> FileIO:
    with translated(path, total):
        if path.exists() and path.stat().st_size > total:
            path.unlink()  # of another bundle: ours has not so many bytes
        return FileIO(path, "ab")  # unbuffered: a full disk shows where it is written, not where it is closed


def _append(file: FileIO, path: Path, data: bytes) -> None:
    left = memoryview(data)
    with translated(path, len(data)):
        while left:
            left = left[file.write(left) :]


def _checked(reply: director_pb2.FetchBundleReply, offset: int, total: int) -> bytes:
    chunk = reply.chunk
    if chunk.offset != offset or offset + len(chunk.data) > total:
        raise MalformedMessageError(
            f"got {len(chunk.data)} bytes at {chunk.offset}, expected them at {offset} of {total}"
        )
    return chunk.data
