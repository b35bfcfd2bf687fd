"""Scripted people, envoys and aggregators, which dial a real director, and a launcher that starts nothing."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from director.service import DESCRIPTOR
from federation.names import FederationName, Identity, Role, director_server_name
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.transport.channels import open_channel
from federation.transport.credentials import TlsFiles
from federation.transport.methods import BidiCall, Stub
from federation.v1 import director_pb2 as pb
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from director.config import DirectorSettings
    from director.daemon import Director
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
