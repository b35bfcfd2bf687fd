"""Takes submissions in: streamed to temporary files, verified, stored, queued; or refused with nothing left behind.

Rules, in order:

1. Header first: the manifest's signature is checked with the key that came along (whom a silo believes is the silo's
   business), its federation, expiry and limits, and its submitter must be the user of the certificate.
2. Bundle and model follow, in order, chunk by chunk into temporary files; each must have the size and SHA-256 the
   manifest signs. The model's tensors must be those of the signed spec, and its plan must be one that an aggregator of
   this release can run: method, codecs and rule are installed here and fit together.
3. The experiment is stored as SUBMITTED with its nonce, its files are put into the artifact store, and only then is it
   QUEUED. What fails on the way is taken back; what a crash left SUBMITTED is taken back at the next start.
4. The bundle is stored and never opened. Every submission, admitted or refused, is in the audit trail.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import string
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from director import lifecycle
from director.scheduling import Need
from director.sessions import first
from director.store import artifacts, events, experiments
from director.store.records import ArtifactRecord, Submission
from federation.aggregator.support import check_supported
from federation.bundle.signing import SignedManifest, VerifiedManifest, open_manifest
from federation.errors import (
    BundleError,
    FederationError,
    IdentityError,
    LimitError,
    MalformedMessageError,
    StorageError,
    TransportError,
)
from federation.names import ExperimentId, ExperimentState, FederationName, Role, UserName, experiment_id
from federation.storage.artifacts import put_file
from federation.storage.disk import translated
from federation.storage.safetensors_files import read_header
from federation.telemetry.logs import get_logger
from federation.v1 import director_pb2 as pb
from federation.wire.chunks import ChunkReceiver
from federation.wire.versions import negotiate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from prometheus_client import Counter
    from sqlalchemy.orm import Session

    from director.store.database import Database
    from federation.bundle.manifest import Manifest
    from federation.plan import ExperimentSpec
    from federation.runtime.clock import Clock
    from federation.storage.artifacts import ArtifactStore
    from federation.telemetry.metrics import Metrics
    from federation.transport.calls import Call
    from federation.v1.tensors_pb2 import Chunk

BUNDLE, MODEL, SPEC = "bundle.zip", "initial.safetensors", "spec.json"
"""Artifacts every experiment begins with. The bundle is fetched by assigned envoys only."""
_SUFFIX_CHARACTERS = string.ascii_lowercase + string.digits

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a submission may cost: bytes of bundle and model, and experiments of one user that are not over."""

    bundle_bytes: int
    model_bytes: int
    experiments: int


class Intake:
    """Takes submissions in.

    Args:
        federation: this federation.
        database: the store.
        store: the artifact store.
        incoming: folder for temporary files, on a local disk; emptied by `tidy`.
        clock: for times.
        allowance: see `Allowance`.
        metrics: counts the bytes.
        submitted: called once an experiment is queued.
    """

    def __init__(
        self,
        *,
        federation: FederationName,
        database: Database,
        store: ArtifactStore,
        incoming: Path,
        clock: Clock,
        allowance: Allowance,
        metrics: Metrics,
        submitted: Callable[[], None],
    ) -> None:
        self._federation = federation
        self._database = database
        self._store = store
        self._incoming = incoming
        self._clock = clock
        self._allowance = allowance
        self._received = metrics.payload_bytes_total
        self._submitted = submitted

    async def tidy(self) -> None:
        """Take back what a crash left half submitted; before the first call."""
        with translated(self._incoming):
            await asyncio.to_thread(shutil.rmtree, self._incoming, ignore_errors=True)
            self._incoming.mkdir(parents=True)
        for found in await self._database.transact(experiments.find, states=[ExperimentState.SUBMITTED]):
            _log.warning("half a submission taken back", experiment=found.id)
            await self._discard(found.id)

    async def submit(self, requests: AsyncIterator[pb.SubmitRequest], call: Call) -> pb.SubmitReply:
        """Take one submission in.

        Raises:
            FederationError: why it is refused; nothing is left behind.
        """
        try:
            experiment = await self._take(requests, call)
        except FederationError as error:
            _log.info("submission refused", user=call.peer.identity.name, reason=str(error))
            await self._audit(call, admitted=False, subject="", detail=str(error))
            raise
        await self._audit(call, admitted=True, subject=experiment, detail="")
        self._submitted()
        return pb.SubmitReply(experiment=experiment)

    async def _take(self, requests: AsyncIterator[pb.SubmitRequest], call: Call) -> ExperimentId:
        header = (await first(requests, "header")).header
        negotiate(header.protocol)
        signed = SignedManifest(manifest=header.manifest, signature=header.signature, signing_key=header.signing_key)
        verified = await asyncio.to_thread(open_manifest, signed, federation=self._federation, now=self._clock.now())
        manifest = verified.manifest
        self._check_header(header, manifest, call)
        user = UserName(call.peer.identity.name)
        if await self._database.relaxed(experiments.count_open, user) >= self._allowance.experiments:
            raise LimitError(
                f"you have {self._allowance.experiments} experiments that are not over, the most allowed: "
                "wait for one, or cancel one"
            )
        folder = self._incoming / secrets.token_hex(8)
        with translated(folder):
            folder.mkdir()
        try:
            await _receive(requests, folder, manifest, self._received)
            await asyncio.to_thread(_check_model, folder / MODEL, manifest.spec)
            return await self._store_all(signed, verified, folder, call)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    def _check_header(self, header: pb.SubmitHeader, manifest: Manifest, call: Call) -> None:
        identity = call.peer.identity
        if identity.role is not Role.USER or manifest.submitter != identity.name:
            raise IdentityError(
                f"the bundle is signed as user {manifest.submitter!r}, the certificate is of {identity}: "
                "submit your own bundles"
            )
        for what, announced, signed, most in (
            ("bundle", header.bundle_bytes, manifest.bundle_bytes, self._allowance.bundle_bytes),
            ("model", header.model_bytes, manifest.model_bytes, self._allowance.model_bytes),
        ):
            if announced != signed:
                raise BundleError(f"the header announces a {what} of {announced} bytes, the manifest signs {signed}")
            if signed > most:
                raise LimitError(f"the {what} has {signed} bytes, this director takes at most {most}")
        check_supported(manifest.spec)

    async def _store_all(
        self, signed: SignedManifest, verified: VerifiedManifest, folder: Path, call: Call
    ) -> ExperimentId:
        submission = _submission(signed, verified, call, self._clock.now())
        experiment = submission.experiment
        await self._database.transact(experiments.add, submission)
        try:
            spec = folder / SPEC
            await asyncio.to_thread(spec.write_text, submission.spec, "utf-8")
            stored = await asyncio.to_thread(self._put, experiment, folder)
            queued = lifecycle.Change(
                to=ExperimentState.QUEUED, reason="stored", actor=submission.actor, at=self._clock.now()
            )
            await self._database.transact(_queue, experiment, stored, queued)
        except BaseException:
            # Shielded: the call may be cancelled, and then nothing of it may stay.
            await asyncio.shield(self._discard(experiment))
            raise
        _log.info("experiment submitted", experiment=experiment, user=submission.user)
        return experiment

    def _put(self, experiment: ExperimentId, folder: Path) -> list[ArtifactRecord]:
        stored = [put_file(self._store, experiment, name, folder / name) for name in (BUNDLE, MODEL, SPEC)]
        return [ArtifactRecord(name=item.name, bytes=item.nbytes, digest=item.sha256, round=0) for item in stored]

    async def _discard(self, experiment: ExperimentId) -> None:
        await asyncio.to_thread(self._store.remove_experiment, experiment)
        await self._database.transact(experiments.discard, experiment)

    async def _audit(self, call: Call, *, admitted: bool, subject: str, detail: str) -> None:
        try:
            await self._database.transact(
                events.audit,
                at=self._clock.now(),
                actor=call.peer.identity.spiffe,
                action="Submit",
                admitted=admitted,
                subject=subject,
                detail=detail,
            )
        except StorageError as error:
            _log.error("audit event not stored", reason=str(error))  # the caller is told what matters to him


def _submission(signed: SignedManifest, verified: VerifiedManifest, call: Call, now: float) -> Submission:
    spec = verified.manifest.spec
    suffix = "".join(secrets.choice(_SUFFIX_CHARACTERS) for _ in range(8))
    experiment = experiment_id(spec.name, suffix)
    return Submission(
        experiment=experiment,
        name=spec.name,
        project=spec.project,
        user=UserName(call.peer.identity.name),
        actor=call.peer.identity.spiffe,
        spec=verified.manifest.spec_json.decode(),
        need=Need(
            experiment=experiment,
            kind=spec.shard,
            sites=spec.plan.sites_wanted,
            sample_shape=spec.sample_shape,
            target_shape=spec.target_shape,
        ),
        minimum_sites=spec.plan.sites_needed,
        rounds=spec.plan.rounds,
        manifest=signed.manifest,
        signature=signed.signature,
        signing_key=signed.signing_key,
        manifest_digest=hashlib.sha256(signed.manifest).hexdigest(),
        signing_fingerprint=verified.fingerprint,
        bundle_bytes=verified.manifest.bundle_bytes,
        nonce=verified.manifest.nonce,
        at=now,
    )


async def _receive(
    requests: AsyncIterator[pb.SubmitRequest], folder: Path, manifest: Manifest, received: Counter
) -> None:
    """Write the two files the manifest signs."""
    wanted = (
        ("bundle", folder / BUNDLE, manifest.bundle_bytes, manifest.bundle_digest),
        ("model", folder / MODEL, manifest.model_bytes, manifest.model_digest),
    )
    for what, path, total, digest in wanted:
        receiver = ChunkReceiver(total, hashlib.sha256)
        with translated(path), path.open("wb") as file:
            while not receiver.is_complete:
                request = await anext(requests, None)
                if request is None:
                    raise TransportError(f"the {what} ended after {receiver.received} of {total} bytes: submit again")
                got = request.WhichOneof("message")
                if got != what:
                    raise MalformedMessageError(f"expected the next piece of the {what}, got {got}")
                chunk = request.bundle if what == "bundle" else request.model
                await asyncio.to_thread(_keep, receiver, chunk, file)
                received.labels("in", what).inc(len(chunk.data))
        if receiver.finish() != digest:
            raise BundleError(f"the {what} is not the one that was signed: its SHA-256 differs from the manifest's")
    if await anext(requests, None) is not None:
        raise MalformedMessageError("there are messages after the last piece of the model")


def _keep(receiver: ChunkReceiver, chunk: Chunk, file: IO[bytes]) -> None:
    file.write(receiver.accept(chunk))


def _check_model(path: Path, spec: ExperimentSpec) -> None:
    """Check that the model file holds exactly the tensors of the spec; roles are the spec's alone."""
    try:
        header = read_header(path)
    except StorageError as error:
        raise BundleError("the initial model is not a valid safetensors file: pack the experiment again") from error
    held = {tensor.name: (tensor.dtype, tensor.shape) for tensor in header.specs}
    wanted = {tensor.name: (tensor.dtype, tensor.shape) for tensor in spec.schema_}
    for name in sorted(held.keys() | wanted.keys()):
        if held.get(name) != wanted.get(name):
            raise BundleError(
                f"tensor {name!r} of the initial model is {_shown(held.get(name))}, the signed plan says "
                f"{_shown(wanted.get(name))}: pack the experiment again"
            )


def _shown(tensor: tuple[object, ...] | None) -> str:
    return "missing" if tensor is None else f"{getattr(tensor[0], 'value', tensor[0])} of shape {tensor[1]}"


def _queue(session: Session, experiment: ExperimentId, stored: list[ArtifactRecord], queued: lifecycle.Change) -> None:
    for artifact in stored:
        if artifact.name != BUNDLE:
            artifacts.record(session, experiment, artifact, queued.at)
    experiments.change(session, experiment, queued)
