"""A real director over mutual TLS, with scripted envoys, users and aggregators that dial it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from director.config import DirectorSettings
from director.daemon import Director, serving
from director.service import DESCRIPTOR
from federation.bundle.manifest import Manifest, new_nonce
from federation.bundle.signing import sign_manifest
from federation.names import Digest, FederationName, Identity, Role, UserName, director_server_name
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.keys import make_key
from federation.plan import ExperimentSpec, Plan, tensor_rows
from federation.storage.checkpoints import write_model
from federation.tensors import DType, TensorSchema, TensorSpec
from federation.tensors.digest import payload_digest
from federation.transport.channels import open_channel
from federation.transport.credentials import TlsFiles
from federation.transport.methods import BidiCall, Stub
from federation.v1 import director_pb2 as pb
from federation.wire.chunks import read_chunks
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from director.launcher import LaunchOrder
    from federation.errors import FederationError

FEDERATION = FederationName("test")
WAIT_S = 60.0
"""Longest a test waits for something that should happen at once."""


@dataclass
class Pki:
    """The federation's authority, and certificates as they are asked for."""

    folder: Path
    authority: CertificateAuthority

    def issue(self, role: Role, name: str, *, lifetime_s: float = 3600.0) -> TlsFiles:
        identity = Identity(federation=FEDERATION, role=role, name=name)
        folder = self.folder / f"{role.value}-{name}"
        issue_identity(self.authority, identity, folder, now=time.time(), lifetime_s=lifetime_s, force=True)
        return TlsFiles.in_folder(folder)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    authority = CertificateAuthority.create(FEDERATION, tmp_path / "ca", now=time.time())
    return Pki(tmp_path / "identities", authority)


class ScriptedEnding(str):
    """How one ended, for people."""

    is_disk_full = False


class FullDisk(ScriptedEnding):
    is_disk_full = True


class ScriptedProcess:
    """An aggregator process in name only; the test says when it ends."""

    def __init__(self, order: LaunchOrder) -> None:
        self.order = order
        self.ended: asyncio.Future[ScriptedEnding] = asyncio.get_running_loop().create_future()
        self.stopped = False

    def end(self, how: str = "exited with 1", kind: type[ScriptedEnding] = ScriptedEnding) -> None:
        if not self.ended.done():
            self.ended.set_result(kind(how))

    def end_without_room(self) -> None:
        self.end("DiskFullError: no room for 400 bytes", FullDisk)

    async def wait(self) -> ScriptedEnding:
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        self.end("killed")

    async def stop(self, grace_s: float) -> ScriptedEnding:
        self.stopped = True
        self.end("stopped")
        return await self.wait()

    def release(self) -> None: ...


class ScriptedLauncher:
    """Starts nothing; remembers what it was told to start."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[ScriptedProcess] = asyncio.Queue()
        self.running: dict[Path, ScriptedProcess] = {}
        self.failures: list[FederationError] = []
        """What the next launches fail with."""

    async def launch(self, order: LaunchOrder) -> ScriptedProcess:
        if self.failures:
            raise self.failures.pop()
        process = ScriptedProcess(order)
        self.running[order.folder] = process
        self.started.put_nowait(process)
        return process

    def adopt(self, folder: Path) -> ScriptedProcess | None:
        process = self.running.get(folder)
        return process if process is not None and not process.ended.done() else None

    async def next(self) -> ScriptedProcess:
        return await asyncio.wait_for(self.started.get(), WAIT_S)


@pytest.fixture
def launcher() -> ScriptedLauncher:
    return ScriptedLauncher()


@pytest.fixture
def settings(tmp_path: Path, pki: Pki) -> DirectorSettings:
    tls = pki.issue(Role.DIRECTOR, "director")
    return DirectorSettings(
        federation=FEDERATION,
        state=tmp_path / "state",
        listen={"port": 0},
        tls={
            "authority": tls.authority,
            "certificate": tls.certificate,
            "key": tls.key,
            "ca": tmp_path / "ca",
            "revoked": tmp_path / "revoked.txt",
        },
        times={"restart_s": 0.01, "end_s": 1.0, "drain_s": 2.0},
        aggregators={"max_restarts": 2},
    )


@dataclass
class World:
    """A director that runs, and the means to talk to it as anybody."""

    director: Director
    settings: DirectorSettings
    pki: Pki
    launcher: ScriptedLauncher
    channels: list[Any] = field(default_factory=list)

    def stub(self, role: Role, name: str, *, tls: TlsFiles | None = None) -> Stub:
        channel = open_channel(
            f"127.0.0.1:{self.director.port}",
            server_name=director_server_name(FEDERATION),
            tls=tls or self.pki.issue(role, name),
        )
        self.channels.append(channel)
        return Stub(channel, DESCRIPTOR, timeout_s=WAIT_S)

    def profile(self, role: Role, name: str) -> Path:
        """Return the client profile of a person."""
        tls = self.pki.issue(role, name)
        path = self.pki.folder / f"{name}.toml"
        lines = {
            "federation": FEDERATION,
            "address": f"127.0.0.1:{self.director.port}",
            "authority": tls.authority,
            "certificate": tls.certificate,
            "key": tls.key,
        }
        path.write_text("".join(f"{key} = {json.dumps(str(value))}\n" for key, value in lines.items()))
        return path

    async def attend(self, site: str, *shards: pb.ShardOffer, running: tuple[str, ...] = ()) -> Envoy:
        envoy = Envoy(site, self.stub(Role.ENVOY, site).bidi("Attend"))
        await envoy.hello(running)
        if shards:
            await envoy.offer(*shards)
        return envoy

    async def supervise(self, process: ScriptedProcess, *, epoch: int | None = None) -> Aggregator:
        experiment = process.order.experiment
        call = self.stub(Role.AGGREGATOR, experiment).bidi("Supervise")
        aggregator = Aggregator(experiment, call)
        await aggregator.hello(epoch or process.order.epoch)
        return aggregator

    async def experiment(self, name: str, *, as_user: str = "alice") -> pb.GetExperimentReply:
        return await self.stub(Role.USER, as_user).unary("GetExperiment", pb.GetExperimentRequest(experiment=name))

    async def watch_until(self, experiment: str, wanted: Callable[[pb.Event], bool], cursor: int = 0) -> list[pb.Event]:
        """Return the events up to the first that is wanted; the way tests wait."""
        seen = []
        request = pb.WatchExperimentRequest(experiment=experiment, cursor=cursor)
        async with (
            asyncio.timeout(WAIT_S),
            self.stub(Role.OPERATOR, "root").server_stream("WatchExperiment", request) as events,
        ):
            async for event in events:
                seen.append(event)
                if wanted(event):
                    return seen
        raise AssertionError(f"the stream ended without it; seen: {[event.text for event in seen]}")

    async def until_state(self, experiment: str, state: pb.ExperimentState) -> list[pb.Event]:
        return await self.watch_until(experiment, lambda event: event.transition.state == state)

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


@dataclass
class _Peer:
    call: BidiCall

    async def read(self) -> Any:
        return await asyncio.wait_for(self.call.read(), WAIT_S)

    async def read_kind(self, kind: str) -> Any:
        """Return the next message, which must be of this kind."""
        message = await self.read()
        assert message is not None, f"the session ended, {kind} was expected"
        assert message.WhichOneof("message") == kind, message
        return getattr(message, kind)

    async def leave(self) -> None:
        await self.call.done_writing()
        while await self.read() is not None:
            pass


class Envoy(_Peer):
    """A scripted envoy."""

    def __init__(self, site: str, call: BidiCall) -> None:
        super().__init__(call)
        self.site = site

    async def hello(self, running: tuple[str, ...] = (), director_epoch: int = 0) -> None:
        hello = pb.EnvoyHello(protocol=range_to_proto(), running=running, director_epoch=director_epoch)
        await self.call.write(pb.AttendRequest(hello=hello))
        self.welcome = await self.read_kind("welcome")

    async def offer(self, *shards: pb.ShardOffer) -> None:
        await self.call.write(pb.AttendRequest(offers=pb.ShardOffers(shards=shards)))

    async def answer(self, experiment: str, answer: int, reason: str = "") -> None:
        message = pb.AssignmentAnswer(experiment=experiment, answer=answer, reason=reason)  # type: ignore[arg-type]
        await self.call.write(pb.AttendRequest(answer=message))

    async def accept(self) -> pb.Assignment:
        assignment = await self.read_kind("assignment")
        await self.answer(assignment.experiment, pb.AssignmentAnswer.ANSWER_ACCEPTED)
        return assignment


class Aggregator(_Peer):
    """A scripted aggregator."""

    def __init__(self, experiment: str, call: BidiCall) -> None:
        super().__init__(call)
        self.experiment = experiment

    async def hello(self, epoch: int) -> None:
        hello = pb.AggregatorHello(
            protocol=range_to_proto(),
            experiment=self.experiment,
            epoch=epoch,
            address=f"localhost:{4000 + epoch}",
            metrics_address="127.0.0.1:9",
        )
        await self.call.write(pb.SuperviseRequest(hello=hello))

    async def welcomed(self) -> pb.AggregatorWelcome:
        welcome = await self.read_kind("welcome")
        await self.read_kind("roster")
        return welcome

    async def roster_of(self, *wanted: str) -> None:
        """Read rosters until one has exactly these sites."""
        while sorted(row.site for row in (await self.read_kind("roster")).sites) != sorted(wanted):
            pass

    async def report(self, sequence: int, number: int, **fields: Any) -> None:
        report = pb.RoundReport(
            round=number,
            epoch=1,
            sequence=sequence,
            started_at=1.0,
            seconds=0.5,
            metrics={"loss": 0.5},
            model_digest="ab" * 32,
            contributions=[pb.Contribution(site="north", outcome="counted", examples=10, weight=1.0)],
            **fields,
        )
        await self.call.write(pb.SuperviseRequest(report=report))

    async def end(self, outcome: str = "completed", sequence: int = 99) -> None:
        end = pb.ExperimentEnd(outcome=outcome, reason="all rounds done", sequence=sequence)
        await self.call.write(pb.SuperviseRequest(end=end))


@pytest.fixture
def make_aggregator() -> type[Aggregator]:
    """The class itself, for tests that dial a director of another process."""
    return Aggregator


@asynccontextmanager
async def running(settings: DirectorSettings, pki: Pki, launcher: ScriptedLauncher) -> AsyncIterator[World]:
    async with serving(settings, launcher=launcher) as director:
        world = World(director, settings, pki, launcher)
        try:
            yield world
        finally:
            await world.close()


@pytest.fixture
async def world(settings: DirectorSettings, pki: Pki, launcher: ScriptedLauncher) -> AsyncIterator[World]:
    async with running(settings, pki, launcher) as made:
        yield made


@pytest.fixture
def run_director() -> Any:
    """The context manager itself, for tests that start a director more than once."""
    return running


def shard(name: str = "main", kind: str = "tabular", **fields: Any) -> pb.ShardOffer:
    fields = {"train_examples": 10, "validation_examples": 2, "sample_shape": [3], **fields}
    return pb.ShardOffer(name=name, kind=kind, **fields)


@pytest.fixture
def make_shard() -> Callable[..., pb.ShardOffer]:
    return shard


@dataclass
class Package:
    """A signed submission; tests change it before it is sent."""

    header: pb.SubmitHeader
    bundle: bytes
    model: bytes

    async def requests(self) -> AsyncIterator[pb.SubmitRequest]:
        yield pb.SubmitRequest(header=self.header)
        for kind, data in (("bundle", self.bundle), ("model", self.model)):
            for chunk in read_chunks(lambda offset, size, data=data: data[offset : offset + size], len(data)):
                yield pb.SubmitRequest(**{kind: chunk})

    async def submit(self, world: World, user: str = "alice") -> str:
        reply = await world.stub(Role.USER, user).client_stream("Submit", self.requests())
        return str(reply.experiment)


SCHEMA = TensorSchema.of([TensorSpec(name="weight", dtype=DType.FLOAT32, shape=(3,))])


@pytest.fixture
def make_package(tmp_path: Path) -> Callable[..., Package]:
    def make(name: str = "trial", *, user: str = "alice", sites: int = 1, **changes: Any) -> Package:
        path = tmp_path / "model.safetensors"
        write_model(path, SCHEMA, {"weight": np.zeros(3, np.float32)})
        model, bundle = path.read_bytes(), b"PK not opened by anybody here" * 1000
        plan = Plan(rounds=2, minimum_sites=sites, **changes.pop("plan", {}))
        spec = ExperimentSpec(name=name, shard="tabular", plan=plan, tensors=tensor_rows(SCHEMA))
        fields: dict[str, Any] = {
            "federation": FEDERATION,
            "submitter": UserName(user),
            "spec": spec,
            "files": (),
            "bundle_digest": Digest(hashlib.sha256(bundle).digest()),
            "bundle_bytes": len(bundle),
            "model_digest": Digest(hashlib.sha256(model).digest()),
            "model_bytes": len(model),
            "model_payload_digest": payload_digest(bytes(12)),
            "base_payload_digest": payload_digest(b""),
            "nonce": new_nonce(),
            "not_after": time.time() + 3600,
            **changes,
        }
        signed = sign_manifest(Manifest(**fields), make_key())
        header = pb.SubmitHeader(
            protocol=range_to_proto(),
            manifest=signed.manifest,
            signature=signed.signature,
            signing_key=signed.signing_key,
            bundle_bytes=fields["bundle_bytes"],
            model_bytes=fields["model_bytes"],
        )
        return Package(header, bundle, model)

    return make


@pytest.fixture
def config(tmp_path: Path, settings: Any, pki: Any) -> Path:
    """Return the configuration file of a director process."""
    tls = settings.tls
    path = tmp_path / "director.toml"
    path.write_text(
        f"""
        federation = "test"
        state = "state"
        [listen]
        port = 0
        [tls]
        authority = "{tls.authority}"
        certificate = "{tls.certificate}"
        key = "{tls.key}"
        ca = "{tls.ca}"
        [times]
        restart_s = 0.05
        """
    )
    return path
