"""Sites whose payloads go the way a collaborator's do, and the cable between such a site and the bulk port.

A site has a collaborator's own downloads and uploads; a cable counts what passes, stalls, and is cut when a test says.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from federation.collaborator.downloads import Downloads
from federation.collaborator.exchange import Exchange
from federation.collaborator.link import BulkDialler, Link, LinkHolder
from federation.collaborator.uploads import Uploads
from federation.names import Attempt, Epoch, RoundNumber, aggregator_server_name
from federation.runtime.clock import SystemClock
from federation.storage.retained import RetainedFile, RetainedUpdate
from federation.telemetry.metrics import Metrics
from federation.tensors.digest import payload_digest
from federation.testing.honest_sites import HonestSite
from federation.transport.lines import BulkAddress
from federation.wire.payloads import payload_from_proto

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

UP, DOWN = "up", "down"


@dataclass
class Cable:
    """One end at a port of its own, the other at `port`; up is what the site says.

    Attributes:
        port: where the other end is; set before the first line.
        passed: bytes of each line, by direction.
        cut_after: cut the next line once so many bytes passed in a direction.
        stall_after: let no more through, in a direction of any line, until `go_on`.
        stalled: set once that is so.
        go_on: set, it goes on.
        ends_badly: as a site ends a line, the other side hears nonsense.
    """

    port: int = 0
    passed: list[dict[str, int]] = field(default_factory=list)
    cut_after: dict[str, int] = field(default_factory=dict)
    stall_after: dict[str, int] = field(default_factory=dict)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    ends_badly: bool = False
    _server: asyncio.Server | None = None
    _lines: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Cable:
        listener = socket.socket()
        _keep_small(listener)
        listener.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._begin, sock=listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    def at(self, port: int) -> int:
        """Lay it to `port`, and return the port of this end."""
        assert self._server is not None
        self.port = port
        return int(self._server.sockets[0].getsockname()[1])

    def total(self, direction: str) -> int:
        return sum(line[direction] for line in self.passed)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.create_task(self._carry(reader, writer))
        self._lines.add(line)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = {UP: 0, DOWN: 0}
        self.passed.append(passed)
        ends = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(sock=await _dialled(self.port))
            ends.append(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(UP, passed, reader, far_writer))
                both.create_task(self._pass(DOWN, passed, far_reader, writer))
        except* OSError:
            pass
        finally:
            for end in ends:
                end.transport.abort()
            for end in ends:
                with suppress(OSError):
                    await end.wait_closed()

    async def _pass(
        self, way: str, passed: dict[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(1 << 16):
            passed[way] += len(data)
            if passed[way] >= self.cut_after.get(way, 1 << 60):
                del self.cut_after[way]
                raise ConnectionAbortedError("cut")
            if passed[way] >= self.stall_after.get(way, 1 << 60):
                self.stalled.set()
                await self.go_on.wait()
            writer.write(data)
            await writer.drain()
        if way == UP and self.ends_badly:
            writer.write(b"no record of TLS")
        writer.write_eof()


async def _dialled(port: int) -> socket.socket:
    end = socket.socket()
    _keep_small(end)
    end.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", port))
    except OSError:
        end.close()
        raise
    return end


def _keep_small(end: socket.socket) -> None:
    """Let the system swallow little, also while a thread starts late: what passed was read, but for a few hundred KiB.

    At the other end its default, which grows no further for a socket that nobody reads.
    """
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        end.setsockopt(socket.SOL_SOCKET, buffer, 1 << 16)


@dataclass
class Place:
    """What outlives a session at a site: its folder, its link, what is fetched and sent."""

    folder: Path
    spec: Any
    experiment: Any
    clock: Any = field(default_factory=SystemClock)
    links: LinkHolder = field(default_factory=LinkHolder)

    def __post_init__(self) -> None:
        self.metrics = metrics = Metrics()
        self.downloads = Downloads(
            experiment=self.experiment,
            exchange=Exchange(self.folder / "exchange"),
            spec=self.spec,
            links=self.links,
            metrics=metrics,
            clock=self.clock,
        )
        self.uploads = Uploads(
            links=self.links,
            metrics=metrics,
            clock=self.clock,
            schemas={plan.name: plan.schema for plan in self.spec.uploads()},
        )


class LineSite(HonestSite):
    """Honest, and its payloads go as a collaborator's do.

    Args:
        place: what outlives the session.
        cable: between it and the bulk port, if there is one.
        bulk_port: dialled in place of the aggregator's own.
        has_digests: whether it knows the digests of what it sends; then it was checked before.
    """

    def __init__(
        self,
        *rest: Any,
        place: Place,
        cable: Cable | None = None,
        bulk_port: int | None = None,
        has_digests: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*rest, **options)
        self.place = place
        self.cable = cable
        self.bulk_port = bulk_port
        self.has_digests = has_digests

    @property
    def files(self) -> Path:
        return self.place.folder / self.name

    async def connect(self, change: Any = None) -> Any:
        welcome = await super().connect(change)
        port = self.bulk_port or welcome.bulk_port
        if port and self.cable is not None:
            port = self.cable.at(port)
        name = aggregator_server_name(self.meeting.federation, self.meeting.experiment)
        assert self.tls is not None
        bulk = None
        if port:
            bulk = BulkDialler(BulkAddress("127.0.0.1", port, server_name=name, tls=self.tls), self.place.clock)
        self.place.links.set(Link(stub=self.stub, call=None, epoch=Epoch(welcome.epoch), bulk=bulk))  # type: ignore[arg-type]
        return welcome

    async def pull(self, payload: Any, offset: int = 0) -> bytes:
        path = await self.place.downloads.model(payload_from_proto(payload, with_digest=True), {})
        return path.read_bytes()

    async def send(self, task: Any, header: Any, payloads: Mapping[str, bytes]) -> None:
        await self.place.uploads.push(self.kept(header, payloads))

    def kept(self, header: Any, payloads: Mapping[str, bytes]) -> RetainedUpdate:
        """Write an update as a trainer would, and return what is kept of it."""
        self.files.mkdir(exist_ok=True)
        for name, data in payloads.items():
            (self.files / name).write_bytes(data)
        files = tuple(
            RetainedFile(
                payload=name,
                path=self.files / name,
                nbytes=len(data),
                digest=payload_digest(data) if self.has_digests else None,
            )
            for name, data in payloads.items()
        )
        return RetainedUpdate(
            round=RoundNumber(header.round),
            attempt=Attempt(header.attempt),
            header=header.SerializeToString(),
            files=files,
        )
