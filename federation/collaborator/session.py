"""The stream to the aggregator, kept up for the life of the experiment.

Rules:

1. Each session has a channel of its own. An aggregator that moved is met by dialling again. When the certificate was
   renewed, the next session is opened before the present one is closed: the aggregator ends the present one as
   superseded, which here is meant, and a transfer on its way goes on in the next where it was cut.
2. Hello first: what this site has obeyed, its plan, and the update it keeps. Then the welcome is checked; only then is
   anything obeyed.
3. A cut is answered by dialling again after a growing, spread delay, which is the first again once a session has stood
   for some time; work goes on meanwhile. The envoy's word that the aggregator is there, here or somewhere else, and a
   renewed certificate end the delay.
4. A session that another one of this site superseded is not dialled again: two collaborators would take turns for ever.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federation.collaborator import kept_updates, tasks
from federation.collaborator.link import BulkDialler, Link
from federation.collaborator.ordering import UnsignedPlanError
from federation.errors import ConflictError, FederationError, MalformedMessageError, PeerError, StaleRoundError
from federation.names import Digest, Epoch
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause
from federation.telemetry.logs import get_logger
from federation.v1 import aggregator_pb2
from federation.wire import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from federation.collaborator.link import LinkHolder
    from federation.collaborator.task_queue import TaskQueue
    from federation.runtime.clock import Clock
    from federation.transport.lines import BulkAddress
    from federation.transport.methods import BidiCall, Stub
    from federation.wire.payloads import Payload

_log = get_logger(__name__)
_SUPERSEDED = "superseded"
_GOODBYE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Opened:
    """One welcomed session and what it goes over."""

    channel: grpc.aio.Channel
    link: Link

    async def close(self) -> None:
        """End it and what else goes over its channel."""
        self.link.call.cancel()
        await self.channel.close()


class SupersededError(FederationError):
    """Another collaborator of this site has taken over the experiment."""


@dataclass(slots=True, kw_only=True)
class SessionKeeper:
    """Keeps a session with the aggregator, again and again until the experiment is over.

    Attributes:
        open_channel: opens a channel to where the aggregator is now.
        bulk_address: returns where lines are dialled, at this port of where the aggregator is now; None without TLS.
        make_stub: makes calls of the aggregator's service over a channel.
        experiment: id.
        initial_base: digest of the tensors that stay at the sites, as signed.
        queue: what is asked goes there.
        links: told of each link.
        clock: for delays.
        on_base: called once, with the payload to prepare with, at the first welcome.
    """

    open_channel: Callable[[], grpc.aio.Channel]
    bulk_address: Callable[[int], BulkAddress | None]
    make_stub: Callable[[grpc.aio.Channel], Stub]
    experiment: str
    initial_base: Digest
    queue: TaskQueue
    links: LinkHolder
    clock: Clock
    on_base: Callable[[Payload | None], None]
    _call: BidiCall | None = None
    _opening: BidiCall | None = None
    _announcing: asyncio.Task[None] | None = None
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _renewed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_renewing: bool = False
    _is_prepared: bool = False

    @property
    def trouble(self) -> str | None:
        """Why nothing can be asked of this site now; None in a welcomed session."""
        return None if self.links.current is not None else "no session with the aggregator"

    async def run(self) -> aggregator_pb2.Finish:
        """Return what the aggregator said when the experiment was over.

        Raises:
            SupersededError: a newer session of this site took over.
            UnsignedPlanError: the aggregator does not keep to the signed plan.
        """
        backoff = Backoff(most_s=15.0)
        while True:
            try:
                finish = await self._participate(backoff)
                if finish is not None:
                    return finish
                _log.info("the aggregator ended the session; dialling again")
            except UnsignedPlanError:
                raise
            except ConflictError as error:
                if _is_superseded(error):
                    raise SupersededError(str(error)) from error
                _log.warning("session: %s", error)
            except FederationError as error:
                # The first failure is news, every further one of the same outage is not.
                _log.log(logging.WARNING if backoff.failures == 0 else logging.DEBUG, "session: %s", error)
            if await pause(self.clock, backoff.next_s(), self._moved.wait(), self._renewed.wait()):
                backoff.reset()

    def renew(self) -> None:
        """Go on in a new session with the certificate files as they are now."""
        self._renewed.set()

    def redial(self) -> None:
        """Dial again at once: the aggregator is somewhere else now."""
        self._moved.set()
        for call in (self._call, self._opening):
            if call is not None:
                call.cancel()

    def aggregator_is_there(self) -> None:
        """Dial at once if there is no session: the aggregator was started again where it was."""
        if self.links.current is None:
            self._moved.set()

    async def say_goodbye(self) -> None:
        """Let what was said reach the aggregator: end our half of the stream, and wait a moment for the other."""
        call = self._call
        if call is None:
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await call.done_writing()
                await self._ended.wait()
        except (TimeoutError, FederationError):
            _log.debug("the aggregator did not end the session in time")

    async def _participate(self, backoff: Backoff) -> aggregator_pb2.Finish | None:
        """Dial, and take part until the aggregator ends the session; return its last word if that was one."""
        self._moved.clear()
        opened = await self._open()
        began = self.clock.monotonic()
        try:
            while True:
                finish, following = await self._hold(opened)
                if following is None:
                    return finish
                opened = following
        finally:
            backoff.stood(self.clock.monotonic() - began)

    async def _open(self) -> _Opened:
        """Dial, and return once the aggregator has welcomed us; the present session goes on."""
        self._renewed.clear()
        channel = self.open_channel()
        try:
            stub = self.make_stub(channel)
            self._opening = call = stub.bidi("Participate")
            try:
                await call.write(aggregator_pb2.ParticipateRequest(hello=self._hello()))
                welcome = self._welcome(await call.read())
                bulk = self._dialler(welcome.bulk_port)
            except BaseException:
                call.cancel()
                raise
            finally:
                self._opening = None
        except BaseException:
            await channel.close()
            raise
        link = Link(
            stub=stub,
            call=call,
            epoch=Epoch(welcome.epoch),
            takes_updates=welcome.takes_updates,
            bulk=bulk,
        )
        return _Opened(channel, link)

    def _dialler(self, port: int) -> BulkDialler | None:
        address = self.bulk_address(port) if 0 < port < 65536 else None
        return BulkDialler(address, self.clock) if address is not None else None

    async def _hold(self, opened: _Opened) -> tuple[aggregator_pb2.Finish | None, _Opened | None]:
        """Take part in one session; return the aggregator's last word, or the session that follows a renewal."""
        call = opened.link.call
        if self.links.current is not opened.link:
            self._take(opened)
        listening = asyncio.create_task(self._attend(call), name="participate")
        following = asyncio.create_task(self._open_next(), name="participate-renewed")
        try:
            await asyncio.wait({listening, following}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and not following.done():
                if not (self._is_renewing and _is_superseded(listening.exception())):
                    return listening.result(), None
                # Superseded by our own next session, whose welcome is on its way.
            self._take(await following)
            return None, following.result()
        finally:
            self._is_renewing = False
            for task in (listening, following):
                task.cancel()
            await asyncio.gather(listening, following, return_exceptions=True)
            if not following.cancelled() and following.exception() is None:
                if following.result().link is not self.links.current:
                    await following.result().close()  # it came in the moment in which we were stopped
            if self._call is call:
                self.links.set(None)
                self._call = None
                self._ended.set()
            await opened.close()

    async def _open_next(self) -> _Opened:
        """Wait for a renewal, and open the session that follows; the present one goes on until that has worked.

        Raises:
            UnsignedPlanError: the aggregator does not keep to the signed plan.
            ConflictError: another collaborator of this site superseded it at once.
        """
        await self._renewed.wait()
        self._is_renewing = True
        backoff = Backoff(first_s=1.0, most_s=60.0)
        while True:
            try:
                return await self._open()
            except UnsignedPlanError:
                raise
            except FederationError as error:
                if _is_superseded(error):
                    raise
                _log.warning("the renewed certificate is not in use yet: %s", error)
            await pause(self.clock, backoff.next_s(), self._renewed.wait())

    def _take(self, opened: _Opened) -> None:
        """Make a session the present one; the first thing said in it is that tasks may come.

        For that to be so its task begins before the link is up: an update may wait for one.
        """
        self._announcing = asyncio.create_task(self.queue.announce(), name="announce")
        self._call = opened.link.call
        self._ended.clear()
        self.links.set(opened.link)

    async def _attend(self, call: BidiCall) -> aggregator_pb2.Finish | None:
        if self._announcing is not None:
            await self._announcing
        return await self._listen(call)

    def _hello(self) -> aggregator_pb2.SiteHello:
        progress = self.queue.progress
        hello = aggregator_pb2.SiteHello(
            protocol=versions.range_to_proto(),
            experiment=self.experiment,
            last_epoch=progress.epoch,
            last_round=progress.committed,
            plan_digest=self.queue.plan_digest,
        )
        update = self.queue.work.retained
        if update is not None:
            hello.pending.round = update.round
            hello.pending.attempt = update.attempt
            hello.pending.update_id = kept_updates.update_id(update)
        return hello

    def _welcome(self, reply: aggregator_pb2.ParticipateReply | None) -> aggregator_pb2.SessionWelcome:
        if reply is None or reply.WhichOneof("message") != "welcome":
            raise MalformedMessageError("the aggregator's first message is not a welcome")
        welcome = reply.welcome
        if not versions.PROTOCOL.lowest <= welcome.protocol <= versions.PROTOCOL.highest:
            raise PeerError(f"the aggregator chose protocol {welcome.protocol}, which this release does not speak")
        self.queue.welcome(welcome)
        if not self._is_prepared:
            base = tasks.read_base(welcome, self.queue.spec, self.initial_base)
            self._is_prepared = True
            self.on_base(base)
        _log.info("taking part, aggregator epoch %d, round %d", welcome.epoch, welcome.round, round=welcome.round)
        return welcome

    async def _listen(self, call: BidiCall) -> aggregator_pb2.Finish | None:
        while (reply := await call.read()) is not None:
            match reply.WhichOneof("message"):
                case "task":
                    if reply.task.HasField("verdict"):
                        self.queue.post_verdict(reply.task.verdict)
                    self.queue.post_task(reply.task)
                case "verdict":
                    self.queue.post_verdict(reply.verdict)
                case "refused":
                    self.queue.post_refused(reply.refused)
                case "finish":
                    finish: aggregator_pb2.Finish = reply.finish
                    if finish.epoch < self.queue.progress.epoch:
                        raise StaleRoundError(f"the end was told with epoch {finish.epoch}, which is superseded")
                    return finish
                case "sealed":
                    _log.warning("a sealed message came, but no method of this plan sends any; dropped")
                case other:
                    raise MalformedMessageError(f"the aggregator sent {other!r} in the middle of a session")
        return None


def _is_superseded(error: BaseException | None) -> bool:
    return isinstance(error, ConflictError) and _SUPERSEDED in str(error)
