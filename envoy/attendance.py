"""The envoy's session with the director, kept up for as long as the envoy runs.

Rules:

1. The envoy dials; each session has a channel of its own. When the certificate was renewed, the next session is opened
   before the present one is closed; the director ends the present one as superseded, which here is meant.
2. Hello first: the experiments that run here and the highest director epoch seen. A director whose welcome has a lower
   epoch was superseded and is left alone.
3. After the welcome: the shards on offer, then how everything here stands, so nothing said while the line was down is
   lost. Whoever started the envoy is told that it is ready (``READY=1``) once, when the first offers are sent.
4. A cut session is dialled again after a growing, spread delay, which is the first again once a session has stood for
   some time, or as the certificate is renewed. What experiments do here goes on meanwhile. One that another envoy of
   this site superseded is not: two would take turns for ever.
5. A clock that differs from the director's by more than a minute is a warning: signatures and certificates expire by
   it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from federation.errors import (
    ConflictError,
    FederationError,
    MalformedMessageError,
    PeerError,
    StaleRoundError,
    StorageError,
)
from federation.runtime.backoff import Backoff
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
_UNREAD_S = 10.0
"""What was sent in a session less than so many seconds before ours superseded it, the director may not have read."""
_REPEATED = 64


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


@dataclass(eq=False, slots=True, kw_only=True)
class _Session:
    """One welcomed session: what it goes over, what is to be said in it, and what was said lately."""

    channel: grpc.aio.Channel
    stub: Stub
    call: BidiCall
    outbox: asyncio.Queue[director_pb2.AttendRequest] = field(default_factory=asyncio.Queue)
    sent: deque[tuple[float, director_pb2.AttendRequest]] = field(default_factory=lambda: deque(maxlen=_REPEATED))

    def hand_over(self, heir: _Session, now: float) -> None:
        """Leave to the next session what was not sent, and what was but perhaps not read: repeating it is harmless."""
        for at, request in self.sent:
            if now - at <= _UNREAD_S and request.WhichOneof("message") in ("answer", "status"):
                heir.outbox.put_nowait(request)
        while not self.outbox.empty():
            heir.outbox.put_nowait(self.outbox.get_nowait())

    async def close(self) -> None:
        """End it and what else goes over its channel."""
        self.call.cancel()
        await self.channel.close()


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
    _session: _Session | None = None
    _up: asyncio.Event = field(default_factory=asyncio.Event)
    _renewed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_renewing: bool = False
    _has_told_parent: bool = False

    def send(self, request: director_pb2.AttendRequest) -> None:
        """Tell the director, if it is there; if not, `Member.standing` will when it is."""
        if self._session is not None and self.is_connected:
            self._session.outbox.put_nowait(request)

    async def director(self, other_than: Stub | None = None) -> Stub:
        """Return the calls of a connected director, once there is a session, and a later one than `other_than`'s."""
        while self._session is None or self._session.stub is other_than:
            await self._up.wait()
        return self._session.stub

    def renew(self) -> None:
        """Go on in a new session with the certificate files as they are now."""
        self._renewed.set()

    async def run(self) -> None:
        """Attend for ever."""
        backoff = Backoff(first_s=0.2, most_s=30.0)
        while True:
            try:
                await self._attend(backoff)
                _log.info("the director ended the session")
            except* ConflictError as group:
                self.superseded = _superseded(group)
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
            if await pause(self.clock, backoff.next_s(), self._renewed.wait()):
                backoff.reset()

    async def _attend(self, backoff: Backoff) -> None:
        """Dial, and attend until the director ends the session."""
        session: _Session | None = await self._open()
        began = self.clock.monotonic()
        try:
            while session is not None:
                session = await self._hold(session)
        finally:
            backoff.stood(self.clock.monotonic() - began)

    async def _open(self) -> _Session:
        """Dial, and return once the director has welcomed us; nothing else of the present session is touched."""
        self._renewed.clear()
        channel = self.open_channel()
        try:
            stub = self.make_stub(channel)
            call: BidiCall = stub.bidi("Attend")
            try:
                await call.write(self._hello())
                reply = await call.read()
                if reply is None:
                    raise MalformedMessageError("the director ended the session before its welcome")
                self._welcome(reply)
            except BaseException:
                call.cancel()
                raise
        except BaseException:
            await channel.close()
            raise
        return _Session(channel=channel, stub=stub, call=call)

    async def _hold(self, session: _Session) -> _Session | None:
        """Converse until the director ends the session (None), or the one that follows a renewal is there."""
        self._begin(session)
        talking = asyncio.create_task(self._converse(session), name="attend")
        following = asyncio.create_task(self._open_next(), name="attend-renewed")
        try:
            await asyncio.wait({talking, following}, return_when=asyncio.FIRST_COMPLETED)
            if talking.done() and not following.done():
                if not (self._is_renewing and _superseded(talking.exception())):
                    return talking.result()
                self.is_connected = False  # our own next session superseded it, and its welcome is on its way
            next_session = await following
            session.hand_over(next_session, self.clock.monotonic())
            self._session = next_session
            return next_session
        finally:
            self._is_renewing = False
            for task in (talking, following):
                task.cancel()
            await asyncio.gather(talking, following, return_exceptions=True)
            if not following.cancelled() and following.exception() is None and following.result() is not self._session:
                await following.result().close()  # it came in the moment in which we were stopped
            if self._session is session:
                self._session, self.is_connected = None, False
            await session.close()

    async def _open_next(self) -> _Session:
        """Wait for a renewal, and open the session that follows; the present one goes on until that has worked.

        Raises:
            ConflictError: another envoy of this site superseded it at once.
        """
        await self._renewed.wait()
        self._is_renewing = True
        backoff = Backoff(first_s=1.0, most_s=60.0)
        while True:
            try:
                return await self._open()
            except FederationError as error:
                if _superseded(error):
                    raise
                _log.warning("the renewed certificate is not in use yet: %s", error)
            await pause(self.clock, backoff.next_s(), self._renewed.wait())

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

    def _begin(self, session: _Session) -> None:
        """Make a welcomed session the present one, and tell the director all it may not know."""
        outbox, inherited = session.outbox, session.outbox.qsize()
        outbox.put_nowait(director_pb2.AttendRequest(offers=self.member.offers()))
        for request in self.member.standing():
            outbox.put_nowait(request)
        for _ in range(inherited):
            outbox.put_nowait(outbox.get_nowait())  # behind the offers
        self._session, self.is_connected = session, True
        up, self._up = self._up, asyncio.Event()
        up.set()

    async def _converse(self, session: _Session) -> None:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write(session), name="attend-writer")
            try:
                while (reply := await session.call.read()) is not None:
                    self._obey(reply)
            finally:
                writer.cancel()

    async def _write(self, session: _Session) -> None:
        while True:
            request = await session.outbox.get()
            session.sent.append((self.clock.monotonic(), request))
            if not await session.call.try_write(request):
                return  # whoever reads learns why
            self.member.delivered(request)
            if request.WhichOneof("message") == "offers":
                self._tell_parent(len(request.offers.shards))

    def _tell_parent(self, shards: int) -> None:
        """Tell whoever started the envoy, once, that it attends and what it offers."""
        if not self._has_told_parent:
            self._has_told_parent = True
            notify_ready(shards=str(shards))

    def _obey(self, reply: director_pb2.AttendReply) -> None:
        match reply.WhichOneof("message"):
            case "assignment":
                self.member.assigned(reply.assignment)
            case "withdrawal":
                self.member.withdrawn(reply.withdrawal)
            case other:
                raise MalformedMessageError(f"the director sent {other!r} in the middle of a session")


def _superseded(error: BaseException | None) -> str:
    """Return what the director says when a newer session of this site took over; empty if that is not it."""
    leaves = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    return next((str(leaf) for leaf in leaves if isinstance(leaf, ConflictError) and "superseded" in str(leaf)), "")
