"""The Python client: `Federation.connect` and everything one can ask of a federation.

::

    with Federation.connect() as federation:
        experiment = federation.submit("examples/digits_cnn")
        for event in federation.watch(experiment):
            print(event.text)
        federation.download(experiment, "best.safetensors", "best.safetensors")

Calls block; underneath, one event loop in a thread of its own (`federation.client.background`) drives gRPC, so that
`watch` waits on the stream and nothing is polled. Every failure is one of `federation.errors`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from federation.client import views
from federation.client.background import BackgroundLoop
from federation.client.profile import Profile, load_profile
from federation.client.report import write_report
from federation.client.resuming import AwayCallback, resumed
from federation.client.runs import federated_run
from federation.client.saving import writing
from federation.client.submission import Package, packaged
from federation.errors import IdentityError, MalformedMessageError, NotFoundError
from federation.names import Identity, Role, UserName
from federation.runtime.clock import SystemClock
from federation.transport.channels import open_channel
from federation.transport.methods import Stub
from federation.v1 import director_pb2 as pb
from federation.v1 import tensors_pb2
from federation.wire.chunks import CHUNK_BYTES
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    import grpc

    from federation.errors import TransportError
    from federation.plan import ExperimentSpec

ProgressCallback = Callable[[str, int, int], None]
"""Called as ``(what, bytes done, bytes in all)`` while something is sent or fetched."""
SpecCallback = Callable[["ExperimentSpec"], None]
"""Called with an experiment that was built, before anything of it is sent."""

_RUN_MODELS = {"last.safetensors": "model.safetensors", "best.safetensors": "best.safetensors"}
"""Artifacts that are models, and what a run folder calls them."""


def _ignore(what: str, done: int, total: int) -> None:
    """Show nothing."""


def _unheard(error: TransportError) -> None:
    """Tell nobody."""


def _unseen(spec: ExperimentSpec) -> None:
    """Look at nothing."""


class Federation:
    """A connection to one federation, as one user. Use as a context manager, or call `close`.

    Raises from every method: `TransportError` if the director cannot be reached, `IdentityError` if our certificate
    does not allow the call, and what the method itself names.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._background = BackgroundLoop("federation client")
        try:
            self._channel, self._stub = self._background.run(_open(profile))
        except BaseException:
            self._background.close()
            raise

    @classmethod
    def connect(cls, profile: Profile | Path | str | None = None) -> Self:
        """Open a connection.

        Args:
            profile: a profile, its file or folder; None: the default place (see `federation.client.profile`).

        Raises:
            ConfigurationError: there is no valid profile, or its certificates cannot be read.
        """
        if not isinstance(profile, Profile):
            profile = load_profile(Path(profile) if profile is not None else None)
        return cls(profile)

    def close(self) -> None:
        """Close the connection. What other threads still wait for, streams too, ends with RuntimeError."""
        self._background.close(self._channel.close(None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Asking

    def describe(self) -> pb.DescribeReply:
        """Return the director's name, clock and versions, and who it takes us for."""
        reply: pb.DescribeReply = self._unary("Describe", pb.DescribeRequest())
        return reply

    def list(
        self, *, project: str = "", states: tuple[str, ...] = (), limit: int = 100
    ) -> tuple[views.ExperimentSummary, ...]:
        """Return experiments we may see, newest first."""
        request = pb.ListExperimentsRequest(project=project, limit=limit)
        request.states.extend(views.state_value(state) for state in states)
        reply: pb.ListExperimentsReply = self._unary("ListExperiments", request)
        return tuple(views.summary_of(summary) for summary in reply.experiments)

    def show(self, experiment: str) -> views.ExperimentDetails:
        """Return all about one experiment.

        Raises:
            NotFoundError: there is none of this id, or it is not ours.
        """
        whole: pb.GetExperimentReply = self._unary("GetExperiment", pb.GetExperimentRequest(experiment=experiment))
        page = whole
        while len(page.rounds) and len(whole.rounds) < whole.summary.rounds_done:
            after = whole.rounds[-1].round
            page = self._unary("GetExperiment", pb.GetExperimentRequest(experiment=experiment, after_round=after))
            whole.rounds.extend(page.rounds)
        return views.details_of(whole)

    def envoys(self) -> tuple[views.Envoy, ...]:
        """Return the federation's envoys and what they offer."""
        reply: pb.ListEnvoysReply = self._unary("ListEnvoys", pb.ListEnvoysRequest())
        return tuple(views.envoy_of(envoy) for envoy in reply.envoys)

    # Doing

    def submit(self, folder: Path | str, *, progress: ProgressCallback = _ignore, built: SpecCallback = _unseen) -> str:
        """Build, sign and submit the experiment in `folder`; return its id.

        Args:
            folder: holds ``experiment.py`` and what it imports.
            progress: told how far the transfer is.
            built: shown the experiment before anything of it is sent.

        Raises:
            PlanError: the folder, its plan or its model is not sound; nothing was sent.
            ConfigurationError: there is no signing key.
            LimitError: bundle or model is larger than the director allows.
        """
        me = Identity.parse(self.describe().caller)
        if me.role is not Role.USER:
            raise IdentityError(f"{me} cannot submit: use a certificate of role user")
        with packaged(Path(folder), self.profile, submitter=UserName(me.name), now=time.time()) as package:
            built(package.manifest.spec)
            return self._background.run(self._submit(package, progress))

    def cancel(self, experiment: str, *, reason: str = "") -> str:
        """Cancel an experiment; return its state afterwards. Doing it twice is harmless.

        Raises:
            ConflictError: it has ended otherwise.
            NotFoundError: there is none of this id.
        """
        request = pb.CancelExperimentRequest(experiment=experiment, reason=reason)
        reply: pb.CancelExperimentReply = self._unary("CancelExperiment", request)
        return views.state_name(reply.state)

    def release(self, experiment: str, site: str, *, reason: str = "") -> int:
        """Let a site out of quarantine, so that it is asked again. For operators; doing it twice is harmless.

        Returns:
            The round that had quarantined it; 0 if it was not in quarantine.

        Raises:
            IdentityError: you are not an operator.
            ConflictError: the experiment has ended.
            NotFoundError: there is no such experiment, or the site takes no part in it.
        """
        request = pb.ReleaseSiteRequest(experiment=experiment, site=site, reason=reason)
        reply: pb.ReleaseSiteReply = self._unary("ReleaseSite", request)
        return reply.quarantined_since if reply.released else 0

    def watch(self, experiment: str, *, cursor: int = 0, away: AwayCallback = _unheard) -> Iterator[views.Event]:
        """Yield events as they happen, from `cursor` on; ends after the experiment has ended.

        A cut stream is taken up again where it stopped, for up to `federation.client.resuming.PATIENCE_S` seconds.

        Args:
            experiment: its id.
            cursor: only events with a higher sequence.
            away: called with the reason, once each time that the director cannot be reached.
        """
        return self._background.iterate(self._watch(experiment, cursor, away))

    def wait(self, experiment: str) -> views.ExperimentSummary:
        """Wait until the experiment has ended; return where it ended."""
        for _event in self.watch(experiment):
            pass
        return self.show(experiment).summary

    def logs(
        self, experiment: str, *, site: str = "", follow: bool = False, away: AwayCallback = _unheard
    ) -> Iterator[str]:
        """Yield log lines of the experiment's aggregator, or those a site released.

        Args:
            experiment: its id.
            site: whose lines; empty for the aggregator's.
            follow: stay until the experiment has ended; a cut stream is taken up again as `watch` does it.
            away: as for `watch`.

        Raises:
            NotFoundError: there is no such experiment, or `site` takes no part in it.
            ConflictError: the log was cut at the director while we read it.
        """
        return self._background.iterate(self._logs(experiment, site, follow=follow, away=away))

    def download(
        self, experiment: str, artifact: str, target: Path | str, *, progress: ProgressCallback = _ignore
    ) -> views.Artifact:
        """Fetch an artifact into `target`, going on where an earlier try stopped, and check its digest.

        Args:
            experiment: its id.
            artifact: name of the artifact, such as ``best.safetensors``.
            target: file to write, or folder to write a file of the artifact's name into.
            progress: called as pieces arrive.

        Raises:
            NotFoundError: there is no such artifact (yet).
            MalformedMessageError: what arrived is not what the director announced; nothing is left at `target`.
            StorageError: `target` cannot be written.
        """
        path = Path(target)
        if path.is_dir():
            path = path / artifact
        known = {entry.name: entry for entry in self.show(experiment).artifacts}
        if artifact not in known:
            there = ", ".join(sorted(known)) or "none yet"
            raise NotFoundError(f"experiment {experiment} has no artifact {artifact!r}; there are: {there}")
        return self._background.run(self._download(experiment, known[artifact], path, progress))

    def download_run(self, experiment: str, folder: Path | str) -> Path:
        """Write what is known of an experiment as a run folder, to be compared with simulated runs; returns the folder.

        Its models are fetched too, as far as there are any yet.

        Raises:
            NotFoundError: there is none of this id, or it is not ours.
            ConflictError: `folder` has another run, or one that is being written.
            StorageError: `folder` cannot be written.
        """
        target = Path(folder)
        details = self.show(experiment)
        with federated_run(details, target):
            for artifact in details.artifacts:
                if artifact.name in _RUN_MODELS:
                    self._background.run(
                        self._download(experiment, artifact, target / _RUN_MODELS[artifact.name], _ignore)
                    )
        return target

    def report(self, experiment: str, target: Path | str) -> Path:
        """Write a self-contained HTML page about an experiment; return where it is.

        Args:
            experiment: its id.
            target: file to write, or folder to write ``EXPERIMENT.html`` into.

        Raises:
            NotFoundError: there is none of this id, or it is not ours.
            StorageError: `target` cannot be written.
        """
        return write_report(self.show(experiment), Path(target))

    # Underneath

    def _unary(self, method: str, request: Any) -> Any:
        return self._background.run(self._stub.unary(method, request, timeout_s=self.profile.timeout_s))

    async def _submit(self, package: Package, progress: ProgressCallback) -> str:
        bundle_bytes = package.archive.stat().st_size
        model_bytes = package.model.stat().st_size

        async def requests() -> AsyncIterator[pb.SubmitRequest]:
            """Yield the header, then bundle and model in pieces."""
            yield pb.SubmitRequest(
                header=pb.SubmitHeader(
                    protocol=range_to_proto(),
                    manifest=package.signed.manifest,
                    signature=package.signed.signature,
                    signing_key=package.signed.signing_key,
                    bundle_bytes=bundle_bytes,
                    model_bytes=model_bytes,
                )
            )
            async for chunk in _file_chunks(package.archive):
                yield pb.SubmitRequest(bundle=chunk)
                progress("bundle", chunk.offset + len(chunk.data), bundle_bytes)
            async for chunk in _file_chunks(package.model):
                yield pb.SubmitRequest(model=chunk)
                progress("model", chunk.offset + len(chunk.data), model_bytes)

        reply: pb.SubmitReply = await self._stub.client_stream("Submit", requests())
        return reply.experiment

    def _watch(self, experiment: str, cursor: int, away: AwayCallback) -> AsyncGenerator[views.Event, None]:
        async def attempt() -> AsyncGenerator[views.Event, None]:
            nonlocal cursor
            request = pb.WatchExperimentRequest(experiment=experiment, cursor=cursor)
            # As a context: whoever stops listening half-way ends the call, or the director would keep it open.
            async with self._stub.server_stream("WatchExperiment", request) as messages:
                async for message in messages:
                    cursor = message.sequence
                    yield views.event_of(message)

        return resumed(attempt, clock=SystemClock(), away=away)

    def _logs(self, experiment: str, site: str, *, follow: bool, away: AwayCallback) -> AsyncGenerator[str, None]:
        cursor = 0

        async def attempt() -> AsyncGenerator[str, None]:
            nonlocal cursor
            request = pb.ReadLogsRequest(experiment=experiment, site=site, follow=follow, cursor=cursor)
            async with self._stub.server_stream("ReadLogs", request) as messages:
                async for message in messages:
                    cursor = message.cursor
                    for line in message.lines:
                        yield line

        return resumed(attempt, clock=SystemClock(), away=away) if follow else attempt()

    async def _download(
        self, experiment: str, artifact: views.Artifact, target: Path, progress: ProgressCallback
    ) -> views.Artifact:
        # The digest is in the name: a rest of another artifact, or of an earlier model, is never taken up again.
        partial = target.with_name(f".{target.name}.{artifact.digest[:16]}.part")
        sha256, offset = hashlib.sha256(), 0
        with writing(target):
            if partial.exists():
                with partial.open("rb") as kept:
                    while piece := kept.read(CHUNK_BYTES):
                        sha256.update(piece)
                        offset += len(piece)
            request = pb.DownloadArtifactRequest(
                experiment=experiment, name=artifact.name, offset=offset, digest=artifact.digest
            )
            try:
                async with self._stub.server_stream("DownloadArtifact", request) as stream:
                    with partial.open("ab") as file:
                        async for message in stream:
                            data = _check(message.chunk, offset)
                            file.write(data)
                            sha256.update(data)
                            offset += len(data)
                            progress(artifact.name, offset, artifact.bytes)
            except MalformedMessageError:
                partial.unlink(missing_ok=True)
                raise
            if sha256.hexdigest() != artifact.digest or offset != artifact.bytes:
                partial.unlink(missing_ok=True)
                raise MalformedMessageError(
                    f"{artifact.name} arrived with {offset} bytes and another digest than announced; try again"
                )
            os.replace(partial, target)
        return artifact


async def _open(profile: Profile) -> tuple[grpc.aio.Channel, Stub]:
    # In the loop: gRPC binds a channel to the one it is made in.
    channel = open_channel(profile.address, server_name=profile.server_name, tls=profile.tls)
    service = pb.DESCRIPTOR.services_by_name["Director"]
    return channel, Stub(channel, service, identity=profile.claimed_identity)


def _check(chunk: tensors_pb2.Chunk, offset: int) -> bytes:
    if chunk.offset != offset:
        raise MalformedMessageError(f"a piece at {chunk.offset} is out of order, expected one at {offset}")
    return chunk.data


async def _file_chunks(path: Path) -> AsyncIterator[tensors_pb2.Chunk]:
    with path.open("rb") as file:
        offset = 0
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield tensors_pb2.Chunk(offset=offset, data=data)
            offset += len(data)
