"""The envoy's session with the director, kept up for as long as the envoy runs.

Rules:

1. The envoy dials; each session has a channel of its own, so that a renewed certificate is used from the next one on.
2. Hello first: the experiments that run here and the highest director epoch seen. A director whose welcome has a lower
   epoch was superseded and is left alone.
3. After the welcome: the shards on offer, then how everything here stands, so nothing said while the line was down is
   lost.
4. A cut session is dialled again after a growing, spread delay. What experiments do here goes on meanwhile. One that
   another envoy of this site superseded is not: two would take turns for ever.
5. A clock that differs from the director's by more than a minute is a warning: signatures and certificates expire by
   it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from federation.collaborator.backoff import Backoff
from federation.errors import (
    ConflictError,
    FederationError,
    MalformedMessageError,
    PeerError,
    StaleRoundError,
    StorageError,
)
from federation.runtime.clock import pause
from federation.runtime.notify import notify_ready
from federation.runtime.records import write_atomically
from federation.v1 import director_pb2
from federation.wire import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import grpc

    from federation.runtime.clock import Clock
    from federation.transport.methods import BidiCall, Stub

_log = logging.getLogger(__name__)
_CLOCK_SKEW_S = 60.0
_SERVICE = director_pb2.DESCRIPTOR.services_by_name["Director"]


class Member(Protocol):
    """What the session needs of the site."""

    def offers(self) -> director_pb2.ShardOffers:
        """Shards on offer."""

    def running(self) -> Sequence[str]:
        """Experiments whose collaborators run here."""

    def standing(self) -> Sequence[director_pb2.AttendRequest]:
        """Everything a director that knows nothing must be told."""

    def assigned(self, assignment: director_pb2.Assignment) -> None:
        """The director asks the site to join."""

    def withdrawn(self, withdrawal: director_pb2.Withdrawal) -> None:
        """The director ends a participation."""

    def delivered(self, request: director_pb2.AttendRequest) -> None:
        """A message was handed to the connection."""


class EpochFile:
    """The highest director epoch this site has seen, durable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.epoch = self._load()

    def obey(self, epoch: int) -> None:
        """Note a director's epoch.

        Raises:
            StaleRoundError: it is lower than one seen before.
            StorageError: the disk refused.
        """
        if epoch < self.epoch:
            raise StaleRoundError(f"the director has epoch {epoch}, this site has seen {self.epoch}: it was superseded")
        if epoch > self.epoch:
            write_atomically(self._path, json.dumps({"epoch": epoch}).encode())
            self.epoch = epoch

    def _load(self) -> int:
        try:
            return int(json.loads(self._path.read_bytes())["epoch"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self._path} is not readable: {error}") from error


@dataclass(slots=True, kw_only=True)
class Attendance:
    """The session, again and again.

    Attributes:
        open_channel: opens a channel to the director.
        make_stub: makes calls of the director's service over a channel.
        member: the site.
        epochs: highest director epoch seen.
        clock: for delays and the skew warning.
        is_connected: a welcome was received and the session is up.
        superseded: what the director said when another envoy of this site took over; empty otherwise.
    """

    open_channel: Callable[[], grpc.aio.Channel]
    make_stub: Callable[[grpc.aio.Channel], Stub]
    member: Member
    epochs: EpochFile
    clock: Clock
    is_connected: bool = False
    superseded: str = ""
    _outbox: asyncio.Queue[director_pb2.AttendRequest] = field(default_factory=asyncio.Queue)
    _stub: Stub | None = None
    _up: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, request: director_pb2.AttendRequest) -> None:
        """Tell the director, if it is there; if not, `Member.standing` will when it is."""
        if self.is_connected:
            self._outbox.put_nowait(request)

    async def director(self) -> Stub:
        """Return the calls of a connected director, once there is one."""
        while self._stub is None:
            await self._up.wait()
        return self._stub

    async def run(self) -> None:
        """Attend for ever."""
        backoff = Backoff(first_s=0.2, most_s=30.0)
        while True:
            try:
                await self._attend(backoff)
                _log.info("the director ended the session")
            except* ConflictError as group:
                self.superseded = next((str(error) for error in group.exceptions if "superseded" in str(error)), "")
            except* FederationError as group:
                for error in group.exceptions:
                    # The first failure is news, every further one of the same outage is not.
                    _log.log(logging.WARNING if backoff.failures == 0 else logging.DEBUG, "session: %s", error)
            if self.superseded:
                _log.error(
                    "another envoy with this site's certificate attends now (%s); this one attends no more. Stop one "
                    "of the two, and ask for a new certificate if the other is not yours",
                    self.superseded,
                )
                await asyncio.get_running_loop().create_future()
            await pause(self.clock, backoff.next_s())

    async def _attend(self, backoff: Backoff) -> None:
        async with self.open_channel() as channel:
            stub = self.make_stub(channel)
            call: BidiCall = stub.bidi("Attend")
            try:
                await call.write(self._hello())
                reply = await call.read()
                if reply is None:
                    raise MalformedMessageError("the director ended the session before its welcome")
                self._welcome(reply)
                backoff.reset()
                await self._converse(call, stub)
            finally:
                self._stub = None
                self.is_connected = False
                self._up.clear()
                call.cancel()

    def _hello(self) -> director_pb2.AttendRequest:
        hello = director_pb2.EnvoyHello(
            protocol=versions.range_to_proto(), running=self.member.running(), director_epoch=self.epochs.epoch
        )
        return director_pb2.AttendRequest(hello=hello)

    def _welcome(self, reply: director_pb2.AttendReply) -> None:
        if reply.WhichOneof("message") != "welcome":
            raise MalformedMessageError("the director's first message is not a welcome")
        welcome = reply.welcome
        if not versions.PROTOCOL.lowest <= welcome.protocol <= versions.PROTOCOL.highest:
            raise PeerError(f"the director chose protocol {welcome.protocol}, which this release does not speak")
        self.epochs.obey(welcome.director_epoch)
        skew = self.clock.now() - welcome.now
        if abs(skew) > _CLOCK_SKEW_S:
            _log.warning("this machine's clock is %.0f s away from the director's; set one of them right", skew)
        _log.info("attending director, epoch %d", welcome.director_epoch)

    async def _converse(self, call: BidiCall, stub: Stub) -> None:
        self._outbox = asyncio.Queue()
        self.is_connected = True
        self._outbox.put_nowait(director_pb2.AttendRequest(offers=self.member.offers()))
        for request in self.member.standing():
            self._outbox.put_nowait(request)
        self._stub = stub
        self._up.set()
        notify_ready()
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write(call), name="attend-writer")
            try:
                while (reply := await call.read()) is not None:
                    self._obey(reply)
            finally:
                writer.cancel()

    async def _write(self, call: BidiCall) -> None:
        while True:
            request = await self._outbox.get()
            if not await call.try_write(request):
                return  # whoever reads learns why
            self.member.delivered(request)

    def _obey(self, reply: director_pb2.AttendReply) -> None:
        match reply.WhichOneof("message"):
            case "assignment":
                self.member.assigned(reply.assignment)
            case "withdrawal":
                self.member.withdrawn(reply.withdrawal)
            case other:
                raise MalformedMessageError(f"the director sent {other!r} in the middle of a session")
