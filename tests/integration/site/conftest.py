"""One site for real: envoy and collaborator processes with their trainers, over mutual TLS.

The other side is scripted: a real server of ours whose director and aggregator say what a test tells them to, the lies
and the cuts included.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import textwrap
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from federation import bundle
from federation.bundle import Manifest, SignedManifest
from federation.collaborator.config import CollaboratorConfig, ShardSettings, TrainerOptions
from federation.errors import ConflictError, FederationError, LimitError, TransportError
from federation.names import (
    ExperimentId,
    FederationName,
    Identity,
    Role,
    SiteName,
    UserName,
    aggregator_server_name,
)
from federation.pki.authority import DAY_S, CertificateAuthority, issue_identity
from federation.pki.signing import make_signing_key
from federation.runtime import children
from federation.runtime.clock import SystemClock
from federation.storage.checkpoints import write_model
from federation.telemetry.metrics import Metrics
from federation.tensors import pack, unpack
from federation.tensors.digest import payload_digest
from federation.training.experiment import load_experiment
from federation.transport.authority import Authority
from federation.transport.credentials import TlsFiles
from federation.transport.handlers import method_path
from federation.transport.server import RpcServer
from federation.v1 import aggregator_pb2, director_pb2
from federation.wire import payloads
from federation.wire.chunks import ChunkReceiver, read_chunks
from federation.wire.payloads import Payload, payload_to_proto
from federation.wire.versions import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    import numpy as np
    from cryptography.hazmat.primitives.asymmetric import ec

    from federation.plan import ExperimentSpec
    from federation.transport.calls import Call

FEDERATION = FederationName("care")
SITE = SiteName("north")
EXPERIMENT = ExperimentId("trial-00000001")
WAIT_S = 30.0
"""Longest a test waits for something that should happen at once; trainers start within it on a busy machine."""

SHARDS = """
import numpy as np
from federation.data.shard import ArrayShard

class Numbers(ArrayShard):
    def __init__(self, examples=8):
        x = np.arange(examples * 3, dtype=np.float32).reshape(examples, 3)
        y = np.zeros(examples, dtype=np.float32)
        super().__init__(train=(x, y), validation=(x[:2], y[:2]), description="numbers")

class Broken:
    def __init__(self):
        raise OSError("the ward's disk is not mounted")
"""
EXPERIMENT_SOURCE = """
import numpy as np
from federation import Experiment, Plan

class Task:
    def train(self, model, data, round):
        {train}
        model["w"] += np.float32(round.number)
        return {{"loss": 1.0 / round.number}}

    def evaluate(self, model, data):
        {evaluate}
        return {{"loss": float(model["w"].mean())}}

experiment = Experiment(
    name="trial", model=lambda: {{"w": np.zeros({elements}, np.float32)}}, task=Task(), shard="numbers",
    plan=Plan(rounds={rounds}, sites={sites}, minimum_sites={sites}, downlink={downlink!r}),
)
"""


@dataclass
class Pki:
    """The federation's authority, and identities as they are asked for."""

    folder: Path
    authority: CertificateAuthority

    def issue_due(self, role: Role, name: str, *, left_s: float = 5 * DAY_S) -> TlsFiles:
        """Issue what should have been renewed by now, and is valid for a while still."""
        identity = Identity(federation=FEDERATION, role=role, name=name)
        folder = self.folder / f"{role.value}-{name}"
        issue_identity(self.authority, identity, folder, now=time.time() - 5 * left_s, lifetime_s=6 * left_s)
        return TlsFiles.in_folder(folder)

    def issue(self, role: Role, name: str) -> TlsFiles:
        folder = self.folder / f"{role.value}-{name}"
        if not folder.exists():
            identity = Identity(federation=FEDERATION, role=role, name=name)
            issue_identity(self.authority, identity, folder, now=time.time())
        return TlsFiles.in_folder(folder)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    authority = CertificateAuthority.create(FEDERATION, tmp_path / "ca", now=time.time())
    return Pki(tmp_path / "identities", authority)


@dataclass
class Trial:
    """An experiment, built and packed as `federation submit` would."""

    folder: Path
    archive: Path
    spec: ExperimentSpec
    arrays: Mapping[str, np.ndarray]
    manifest: Manifest
    key: ec.EllipticCurvePrivateKey

    @cached_property
    def signed(self) -> SignedManifest:
        return bundle.sign_manifest(self.manifest, self.key)

    @property
    def first_model(self) -> bytes:
        return bytes(pack(self.spec.schema_.federated, self.arrays))

    def assignment(self, address: str, **changes: Any) -> director_pb2.Assignment:
        signed = self.signed
        fields = {
            "experiment": EXPERIMENT,
            "shards": ["ward"],
            "aggregator_address": address,
            "aggregator_server_name": aggregator_server_name(FEDERATION, EXPERIMENT),
            "manifest": signed.manifest,
            "signature": signed.signature,
            "signing_key": signed.signing_key,
            "submitted_by": "ada",
            "bundle_bytes": self.manifest.bundle_bytes,
        }
        return director_pb2.Assignment(**{**fields, **changes})


@pytest.fixture
def make_trial(tmp_path: Path) -> Callable[..., Trial]:
    def make(
        train: str = "pass",
        *,
        evaluate: str = "pass",
        elements: int = 8,
        sites: int = 1,
        rounds: int = 3,
        downlink: str = "identity",
    ) -> Trial:
        folder = tmp_path / "experiment"
        folder.mkdir()
        train, evaluate = (
            textwrap.indent(textwrap.dedent(body).strip(), " " * 8).lstrip() for body in (train, evaluate)
        )
        source = EXPERIMENT_SOURCE.format(
            train=train, evaluate=evaluate, elements=elements, sites=sites, rounds=rounds, downlink=downlink
        )
        (folder / "experiment.py").write_text(source)
        spec, arrays = load_experiment(folder).build()
        packed = bundle.pack(folder, tmp_path / "bundle.zip")
        manifest = Manifest(
            federation=FEDERATION,
            submitter=UserName("ada"),
            spec=spec,
            files=packed.files,
            bundle_digest=packed.digest,
            bundle_bytes=packed.nbytes,
            model_digest=write_model(tmp_path / "initial.safetensors", spec.schema_, arrays),
            model_bytes=(tmp_path / "initial.safetensors").stat().st_size,
            model_payload_digest=bundle.payload_digest(spec.schema_.federated, arrays),
            base_payload_digest=bundle.payload_digest(spec.schema_.local, arrays),
            nonce=bundle.new_nonce(),
            not_after=time.time() + 3600,
        )
        key = make_signing_key(tmp_path / "ada.key")
        return Trial(folder, tmp_path / "bundle.zip", spec, arrays, manifest, key)

    return make


@pytest.fixture
def shard_code(tmp_path: Path) -> Path:
    """A folder with the site's own shard factories."""
    folder = tmp_path / "factories"
    folder.mkdir()
    (folder / "ward_shards.py").write_text(SHARDS)
    return folder


class _Scripted:
    """Whatever a service needs that a test does not script is refused."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def refuse(_: Any, __: Any) -> Any:
            raise ConflictError(f"{name} is not scripted")

        return refuse


@dataclass
class SiteSession:
    """The aggregator's end of one collaborator's session."""

    call: Call
    epoch: int
    heard: asyncio.Queue[aggregator_pb2.ParticipateRequest | None] = field(default_factory=asyncio.Queue)
    outbox: asyncio.Queue[aggregator_pb2.ParticipateReply | None] = field(default_factory=asyncio.Queue)

    def send(self, **message: Any) -> None:
        self.outbox.put_nowait(aggregator_pb2.ParticipateReply(**message))

    async def hear(self, kind: str) -> Any:
        """Return the next message, which must be of this kind."""
        request = await asyncio.wait_for(self.heard.get(), WAIT_S)
        assert request is not None, f"the session ended, {kind} was expected"
        assert request.WhichOneof("message") == kind, request
        return getattr(request, kind)

    def cut(self) -> None:
        self.call.end(TransportError("the line was cut"))


@dataclass
class Update:
    """One upload as the aggregator got it."""

    header: aggregator_pb2.UpdateHeader
    data: list[bytes]
    digests: list[bytes]
    resumed_at: list[int]

    def array(self, spec: ExperimentSpec) -> np.ndarray:
        return unpack(spec.schema_.parameters, self.data[0])["w"]


class ScriptedAggregator(_Scripted):
    """Says what it is told to; keeps what it is sent.

    Attributes:
        epoch: of its welcomes.
        plan_digest: of its welcomes.
        models: payloads it serves, by digest.
        pulls: offsets it was asked from.
        cut_pull_after: cut the next download after so many bytes.
        cut_push_after: cut the next upload after so many bytes.
        piece_bytes: largest piece it says it would like.
        tells_digests: whether it says what the digests of an admitted update are.
        largest_piece: largest that came.
        refusal: error the next commit is answered with.
        has_refused: set once that was done.
        upload_has_begun: set once the header of an upload came.
        takes_updates: small updates may come in the session, where they are heard like anything else.
    """

    def __init__(self, trial: Trial) -> None:
        self.spec = trial.spec
        self.epoch = 1
        self.round = 1
        self.plan_digest = hashlib.sha256(trial.manifest.spec_json).digest()
        self.models: dict[bytes, bytes] = {}
        self.pulls: list[int] = []
        self.cut_pull_after: int | None = None
        self.cut_push_after: int | None = None
        self.piece_bytes = 0
        self.tells_digests = False
        self.takes_updates = False
        self.largest_piece = 0
        self.refusal: FederationError | None = None
        self.has_refused = asyncio.Event()
        self.upload_has_begun = asyncio.Event()
        self.sessions: asyncio.Queue[SiteSession] = asyncio.Queue()
        self.updates: asyncio.Queue[Update] = asyncio.Queue()
        self.hellos: list[aggregator_pb2.SiteHello] = []
        self._partial: dict[bytes, list[bytearray]] = {}
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def next_session(self) -> SiteSession:
        return await asyncio.wait_for(self.sessions.get(), WAIT_S)

    async def next_update(self) -> Update:
        return await asyncio.wait_for(self.updates.get(), WAIT_S)

    def task(
        self, data: bytes, *, round_number: int = 1, attempt: int = 1, train: bool = True, inline: bool = True
    ) -> aggregator_pb2.Task:
        digest = payload_digest(data)
        self.models[digest] = data
        model = Payload(
            name=payloads.MODEL,
            schema_digest=self.spec.schema_.federated.digest,
            encoded_bytes=len(data),
            digest=digest,  # type: ignore[arg-type]
        )
        small = [aggregator_pb2.InlinePayload(digest=digest, data=data)] if inline else []
        return aggregator_pb2.Task(
            kind=aggregator_pb2.TASK_KIND_TRAIN if train else aggregator_pb2.TASK_KIND_EVALUATE,
            round=round_number,
            attempt=attempt,
            epoch=self.epoch,
            payloads=[payload_to_proto(model)],
            inline=small,
            deadline_s=60.0,
        )

    def verdict(self, update: Update, *, counted: bool = True) -> aggregator_pb2.Verdict:
        header = update.header
        return aggregator_pb2.Verdict(
            round=header.round,
            attempt=header.attempt,
            update_id=header.update_id,
            epoch=self.epoch,
            counted=counted,
            reason="" if counted else "late",
        )

    async def Participate(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        first = await anext(aiter(requests))
        self.hellos.append(first.hello)
        session = SiteSession(call, self.epoch)
        session.send(
            welcome=aggregator_pb2.SessionWelcome(
                protocol=PROTOCOL.highest,
                epoch=self.epoch,
                round=self.round,
                plan_digest=self.plan_digest,
                takes_updates=self.takes_updates,
            )
        )
        self.sessions.put_nowait(session)

        async def listen() -> None:
            async for request in requests:
                session.heard.put_nowait(request)
            session.heard.put_nowait(None)
            session.outbox.put_nowait(None)

        listening = asyncio.create_task(listen())
        try:
            while (reply := await session.outbox.get()) is not None:
                yield reply
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def PullModel(self, request: Any, call: Call) -> AsyncIterator[Any]:
        self.pulls.append(request.offset)
        data = self.models[request.digest]
        for chunk in read_chunks(lambda offset, size: data[offset : offset + size], len(data), request.offset):
            yield aggregator_pb2.PullModelReply(chunk=chunk)
            if self.cut_pull_after is not None and chunk.offset + len(chunk.data) >= self.cut_pull_after:
                self.cut_pull_after = None
                raise TransportError("the line was cut")

    async def PushUpdate(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        header = (await anext(aiter(requests))).header
        self.upload_has_begun.set()
        held = self._partial.setdefault(header.update_id, [bytearray() for _ in header.payloads])
        resumed_at = [len(part) for part in held]
        holding = aggregator_pb2.UpdateHolding(bytes=resumed_at, piece_bytes=self.piece_bytes)
        yield aggregator_pb2.PushUpdateReply(holding=holding)
        async for request in requests:
            if request.WhichOneof("message") == "commit":
                if self.refusal is not None:
                    refusal, self.refusal = self.refusal, None
                    self.has_refused.set()
                    raise refusal
                update = Update(header, [bytes(part) for part in held], list(request.commit.digests), resumed_at)
                self.updates.put_nowait(update)
                digests = [payload_digest(part) for part in update.data] if self.tells_digests else []
                result = aggregator_pb2.UpdateResult(admitted=True, digests=digests)
                yield aggregator_pb2.PushUpdateReply(result=result)
                return
            self.largest_piece = max(self.largest_piece, len(request.chunk.chunk.data))
            part = held[request.chunk.payload]
            if request.chunk.chunk.offset < len(part):
                continue  # a small update is sent whole at once, whatever is held
            receiver = ChunkReceiver(header.payloads[request.chunk.payload].encoded_bytes)
            receiver._received = len(part)
            part += receiver.check(request.chunk.chunk)
            if self.cut_push_after is not None and len(part) >= self.cut_push_after:
                self.cut_push_after = None
                raise TransportError("the line was cut")


@dataclass
class EnvoySession:
    """The director's end of one envoy's session."""

    hello: director_pb2.EnvoyHello
    call: Call
    heard: asyncio.Queue[director_pb2.AttendRequest] = field(default_factory=asyncio.Queue)
    outbox: asyncio.Queue[director_pb2.AttendReply] = field(default_factory=asyncio.Queue)

    def send(self, **message: Any) -> None:
        self.outbox.put_nowait(director_pb2.AttendReply(**message))

    async def hear(self, kind: str) -> Any:
        """Return the next message of this kind; others are passed over."""
        async with asyncio.timeout(WAIT_S):
            while (request := await self.heard.get()).WhichOneof("message") != kind:
                pass
        return getattr(request, kind)

    def cut(self) -> None:
        self.call.end(TransportError("the line was cut"))


class ScriptedDirector(_Scripted):
    """Assigns what it is told to; serves one bundle.

    Attributes:
        epoch: of its welcomes.
        bundle: archive it serves.
        cut_bundle_after: cut the next download after so many bytes.
        renew: answers a signing request; without it the director refuses.
    """

    def __init__(self) -> None:
        self.epoch = 1
        self.bundle = b""
        self.cut_bundle_after: int | None = None
        self.fetches: list[int] = []
        self.renew: Callable[[bytes], Awaitable[bytes]] | None = None
        self.sessions: asyncio.Queue[EnvoySession] = asyncio.Queue()
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def next_session(self) -> EnvoySession:
        return await asyncio.wait_for(self.sessions.get(), WAIT_S)

    async def Attend(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        first = await anext(aiter(requests))
        session = EnvoySession(first.hello, call)
        session.send(
            welcome=director_pb2.EnvoyWelcome(protocol=PROTOCOL.highest, director_epoch=self.epoch, now=time.time())
        )

        async def listen() -> None:
            async for request in requests:
                session.heard.put_nowait(request)

        listening = asyncio.create_task(listen())
        self.sessions.put_nowait(session)
        try:
            while True:
                yield await session.outbox.get()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def Renew(self, request: Any, call: Call) -> director_pb2.RenewReply:
        if self.renew is None:
            raise LimitError("no more certificates today")
        return director_pb2.RenewReply(certificate=await self.renew(request.signing_request))

    async def FetchBundle(self, request: Any, call: Call) -> AsyncIterator[Any]:
        self.fetches.append(request.offset)
        for chunk in read_chunks(
            lambda offset, size: self.bundle[offset : offset + size], len(self.bundle), request.offset, chunk_bytes=256
        ):
            yield director_pb2.FetchBundleReply(chunk=chunk)
            if self.cut_bundle_after is not None and chunk.offset + len(chunk.data) >= self.cut_bundle_after:
                self.cut_bundle_after = None
                raise TransportError("the line was cut")


@asynccontextmanager
async def serving(service: Any, implementation: Any, tls: TlsFiles) -> AsyncIterator[None]:
    """Serve a scripted implementation to envoys, over mutual TLS."""
    rules = {method_path(method): frozenset({Role.ENVOY}) for method in service.methods}
    server = RpcServer(Authority(FEDERATION, rules, clock=SystemClock()), Metrics(), tls=tls)
    server.add_service(service, implementation)
    implementation.port = await server.start()
    try:
        yield
    finally:
        await server.stop(0.1)


@pytest.fixture
async def aggregator_of(pki: Pki) -> AsyncIterator[Callable[[Trial], Any]]:
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:

        async def start(trial: Trial) -> ScriptedAggregator:
            aggregator = ScriptedAggregator(trial)
            service = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"]
            tls = pki.issue(Role.AGGREGATOR, EXPERIMENT)
            await stack.enter_async_context(serving(service, aggregator, tls))
            return aggregator

        yield start


@pytest.fixture
async def director(pki: Pki) -> AsyncIterator[ScriptedDirector]:
    made = ScriptedDirector()
    service = director_pb2.DESCRIPTOR.services_by_name["Director"]
    async with serving(service, made, pki.issue(Role.DIRECTOR, "director")):
        yield made


@dataclass
class Site:
    """What a test needs to run collaborators by hand, without an envoy."""

    folder: Path
    pki: Pki
    trial: Trial
    shard_code: Path
    sandbox: str = "none"
    name: SiteName = SITE
    options: dict[str, Any] = field(default_factory=dict)
    started: list[children.Child] = field(default_factory=list)

    def config(self, address: str) -> CollaboratorConfig:
        tls = self.pki.issue(Role.ENVOY, self.name)
        bundle_folder = self.folder / "bundle"
        if not bundle_folder.exists():
            self.folder.mkdir(exist_ok=True)
            bundle.unpack(self.trial.archive, self.trial.manifest, bundle_folder)
            (self.folder / "spec.json").write_bytes(self.trial.manifest.spec_json)
        values: dict[str, Any] = {
            "federation": FEDERATION,
            "site": self.name,
            "experiment": EXPERIMENT,
            "authority": tls.authority,
            "certificate": tls.certificate,
            "key": tls.key,
            "aggregator_address": address,
            "aggregator_server_name": aggregator_server_name(FEDERATION, EXPERIMENT),
            "spec_file": self.folder / "spec.json",
            "initial_model": self.trial.manifest.model_payload_digest.hex(),
            "initial_base": self.trial.manifest.base_payload_digest.hex(),
            "bundle_folder": bundle_folder,
            "folder": self.folder / "collaborator",
            "workspace": self.folder / "workspace",
            "exchange": self.folder / "exchange",
            "trainer_log": self.folder / "trainer.log",
            "shards": [
                ShardSettings(name="ward", kind="numbers", factory="ward_shards:Numbers", options={"examples": 8})
            ],
            "trainer": TrainerOptions(
                interpreter=Path(sys.executable), python_path=(self.shard_code,), sandbox=self.sandbox
            ),
            "hidden": [tls.key],
            "envoy_socket": self.folder / "envoy.sock",
            "orphan_s": 60.0,
        }
        return CollaboratorConfig(**{**values, **self.options})

    async def start(self, address: str) -> children.Child:
        config = self.config(address)
        path = self.folder / "collaborator.json"
        path.write_text(config.model_dump_json())
        child = await children.spawn(
            children.ChildSpec(
                name="collaborator",
                argv=[sys.executable, "-P", "-m", "federation.collaborator", "--config", str(path)],
                env={"PATH": os.environ["PATH"]},
                cwd=self.folder,
                log=self.folder / "collaborator.log",
                folder=config.folder,
            )
        )
        self.started.append(child)
        return child

    @property
    def log(self) -> str:
        return (self.folder / "collaborator.log").read_text()

    @property
    def trainer_pid(self) -> int:
        text = (self.folder / "collaborator" / "trainer" / "process.json").read_text()
        return children.ProcessIdentity.from_json(text).pid


@pytest.fixture
async def make_site(tmp_path: Path, pki: Pki, shard_code: Path) -> AsyncIterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(trial: Trial, **fields: Any) -> Site:
        sites.append(Site(tmp_path / "site", pki, trial, shard_code, **fields))
        return sites[-1]

    yield make
    for site in sites:
        for child in site.started:
            if child.is_running:
                child.kill()
                await child.wait()


async def ended(child: children.Child) -> children.ExitStatus:
    """How a child ended; a test never waits longer than for anything else."""
    return await asyncio.wait_for(child.wait(), WAIT_S)


@pytest.fixture
def wait_for_end() -> Any:
    return ended


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def gone(pid: int) -> None:
    """Return once a process is gone: an event of its pidfd, not a poll."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await asyncio.wait_for(done.wait(), WAIT_S)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@pytest.fixture
def until_gone() -> Any:
    return gone
