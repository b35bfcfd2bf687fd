"""The stream to the aggregator, kept up for the life of the experiment.

Rules:

1. Each session has a channel of its own, so that a renewed certificate and a moved aggregator are met by dialling
   again.
2. Hello first: what this site has obeyed, its plan, and the update it keeps. Then the welcome is checked; only then is
   anything obeyed.
3. A cut is answered by dialling again after a growing, spread delay; work goes on meanwhile.
4. A session that a newer one of this site superseded is not dialled again: two collaborators would take turns for ever.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federation.collaborator import tasks, work
from federation.collaborator.backoff import Backoff
from federation.collaborator.link import Link
from federation.collaborator.ordering import UnsignedPlanError
from federation.errors import ConflictError, FederationError, MalformedMessageError, PeerError, StaleRoundError
from federation.names import Digest, Epoch
from federation.runtime.clock import pause
from federation.v1 import aggregator_pb2
from federation.wire import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from federation.collaborator.desk import Desk
    from federation.collaborator.link import LinkHolder
    from federation.runtime.clock import Clock
    from federation.transport.methods import BidiCall, Stub
    from federation.wire.payloads import Payload

_log = logging.getLogger(__name__)
_SUPERSEDED = "superseded"
_GOODBYE_S = 2.0


class SupersededError(FederationError):
    """Another collaborator of this site has taken over the experiment."""


@dataclass(slots=True, kw_only=True)
class Session:
    """The session, again and again until the experiment is over.

    Attributes:
        open_channel: opens a channel to where the aggregator is now.
        make_stub: makes calls of the aggregator's service over a channel.
        experiment: id.
        initial_base: digest of the tensors that stay at the sites, as signed.
        desk: what is asked goes there.
        links: told of each link.
        clock: for delays.
        on_base: called once, with the payload to prepare with, at the first welcome.
    """

    open_channel: Callable[[], grpc.aio.Channel]
    make_stub: Callable[[grpc.aio.Channel], Stub]
    experiment: str
    initial_base: Digest
    desk: Desk
    links: LinkHolder
    clock: Clock
    on_base: Callable[[Payload | None], None]
    _call: BidiCall | None = None
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _is_prepared: bool = False

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
                if _SUPERSEDED in str(error):
                    raise SupersededError(str(error)) from error
                _log.warning("session: %s", error)
            except FederationError as error:
                # The first failure is news, every further one of the same outage is not.
                _log.log(logging.WARNING if backoff.failures == 0 else logging.DEBUG, "session: %s", error)
            await self._wait(backoff.next_s())

    def redial(self) -> None:
        """Dial again at once: the aggregator is somewhere else now."""
        self._moved.set()
        if self._call is not None:
            self._call.cancel()

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
        self._moved.clear()
        async with self.open_channel() as channel:
            stub = self.make_stub(channel)
            call = stub.bidi("Participate")
            self._call = call
            self._ended.clear()
            try:
                await call.write(aggregator_pb2.ParticipateRequest(hello=self._hello()))
                welcome = self._welcome(await call.read())
                backoff.reset()
                self.links.set(Link(stub=stub, call=call, epoch=Epoch(welcome.epoch)))
                await self.desk.announce()
                return await self._listen(call)
            finally:
                self.links.set(None)
                self._call = None
                self._ended.set()
                call.cancel()

    def _hello(self) -> aggregator_pb2.SiteHello:
        progress = self.desk.progress
        hello = aggregator_pb2.SiteHello(
            protocol=versions.range_to_proto(),
            experiment=self.experiment,
            last_epoch=progress.epoch,
            last_round=progress.committed,
            plan_digest=self.desk.plan_digest,
        )
        update = self.desk.work.retained
        if update is not None:
            hello.pending.round = update.round
            hello.pending.attempt = update.attempt
            hello.pending.update_id = work.update_id(update)
        return hello

    def _welcome(self, reply: aggregator_pb2.ParticipateReply | None) -> aggregator_pb2.SessionWelcome:
        if reply is None or reply.WhichOneof("message") != "welcome":
            raise MalformedMessageError("the aggregator's first message is not a welcome")
        welcome = reply.welcome
        if not versions.PROTOCOL.lowest <= welcome.protocol <= versions.PROTOCOL.highest:
            raise PeerError(f"the aggregator chose protocol {welcome.protocol}, which this release does not speak")
        self.desk.welcome(welcome)
        if not self._is_prepared:
            base = tasks.read_base(welcome, self.desk.spec, self.initial_base)
            self._is_prepared = True
            self.on_base(base)
        _log.info("taking part, aggregator epoch %d, round %d", welcome.epoch, welcome.round)
        return welcome

    async def _listen(self, call: BidiCall) -> aggregator_pb2.Finish | None:
        while (reply := await call.read()) is not None:
            match reply.WhichOneof("message"):
                case "task":
                    self.desk.post_task(reply.task)
                case "verdict":
                    self.desk.post_verdict(reply.verdict)
                case "finish":
                    finish: aggregator_pb2.Finish = reply.finish
                    if finish.epoch < self.desk.progress.epoch:
                        raise StaleRoundError(f"the end was told with epoch {finish.epoch}, which is superseded")
                    return finish
                case "sealed":
                    _log.warning("a sealed message came, but no method of this plan sends any; dropped")
                case other:
                    raise MalformedMessageError(f"the aggregator sent {other!r} in the middle of a session")
        return None

    async def _wait(self, delay_s: float) -> None:
        """Wait before dialling again, or until the aggregator is said to be somewhere else."""
        waiting = asyncio.create_task(pause(self.clock, delay_s), name="redial-delay")
        moved = asyncio.create_task(self._moved.wait(), name="aggregator-moved")
        try:
            await asyncio.wait({waiting, moved}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            moved.cancel()
            await asyncio.gather(waiting, moved, return_exceptions=True)
