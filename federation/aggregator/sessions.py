"""Which sites are here: the roster, one session per site, and when a site counts as lost.

Rules:

1. Only sites of the roster have a session. A site that dials before the roster names it waits for that; a site the
   roster drops loses its session.
2. A newer session of a site supersedes the older one, which is ended with ConflictError and must not redial.
3. A site is ready once it says so; its claims are bounded by what it says then and by what its envoy declared.
4. A session that ends leaves the site its grace time to come back; only then is it lost. A connection that is cut for a
   moment costs no round.
5. Messages to a site queue in its session, in order. What was queued for a session that ended is gone: the round
   machine asks again when the site is ready again. A verdict with a task right behind it leaves as one message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federation.errors import ConflictError, IdentityError, LimitError
from federation.rounds.events import SiteLost, SiteReady, SiteReleased
from federation.v1 import aggregator_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.names import Attempt, RoundNumber, SiteName
    from federation.rounds.events import Event
    from federation.runtime.clock import Cancellable, Clock
    from federation.transport.calls import Call

MAX_QUEUED_BYTES = 64 << 20
"""Most bytes that may wait in one session: more means a peer that does not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the roster says of a site.

    Attributes:
        train_examples: most training examples it may claim.
        validation_examples: likewise.
        releases: times an operator released it from quarantine.
    """

    train_examples: int
    validation_examples: int
    releases: int = 0


@dataclass(eq=False, slots=True, kw_only=True)
class Session:
    """One site's stream.

    Attributes:
        site: whose it is, from the certificate.
        call: its call.
        bounds: what the site said when it was ready; None before.
        has_left: it said that it cannot do any later task.
        inlined: digest of the last payload of each name that was sent inside a task, and of the last model that a task
            named: it need not be sent again.
    """

    site: SiteName
    call: Call
    bounds: Bounds | None = None
    has_left: bool = False
    inlined: dict[str, bytes] = field(default_factory=dict)
    _outbox: deque[pb.ParticipateReply | None] = field(default_factory=deque)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _queued_bytes: int = 0

    def send(self, reply: pb.ParticipateReply) -> None:
        """Queue a message.

        Raises:
            LimitError: too much is queued.
        """
        nbytes = reply.ByteSize()
        if self._queued_bytes + nbytes > MAX_QUEUED_BYTES:
            raise LimitError(f"{self.site} has {self._queued_bytes} unread bytes queued; it does not read")
        self._queued_bytes += nbytes
        self._outbox.append(reply)
        self._news.set()

    def end(self) -> None:
        """Let `receive` return None after what is queued."""
        self._outbox.append(None)
        self._news.set()

    async def receive(self) -> pb.ParticipateReply | None:
        """Return the next queued message; None once the session is over."""
        while not self._outbox:
            self._news.clear()
            await self._news.wait()
        reply = self._take()
        if reply is not None and reply.HasField("verdict") and self._has_task_next:
            following = self._take()
            if following is not None:
                joint = pb.ParticipateReply()  # the task is shared by all sites, the verdict is not
                joint.CopyFrom(following)
                joint.task.verdict.CopyFrom(reply.verdict)
                return joint
        return reply

    @property
    def _has_task_next(self) -> bool:
        following = self._outbox[0] if self._outbox else None
        return following is not None and following.HasField("task")

    def _take(self) -> pb.ParticipateReply | None:
        reply = self._outbox.popleft()
        if reply is not None:
            self._queued_bytes -= reply.ByteSize()
        return reply


class Sessions:
    """The sites of one experiment.

    Args:
        clock: times the grace.
        grace_s: seconds a site may take to come back.
        report: told SiteReady, SiteLost and SiteReleased.
    """

    def __init__(self, clock: Clock, grace_s: float, report: Callable[[Event], None]) -> None:
        self._clock = clock
        self._grace_s = grace_s
        self._report = report
        self._roster: dict[SiteName, Bounds] = {}
        self._sessions: dict[SiteName, Session] = {}
        self._graces: dict[SiteName, Cancellable] = {}
        self._bounds: dict[SiteName, Bounds] = {}
        self._changed = asyncio.Event()
        self._end: pb.ParticipateReply | None = None

    @property
    def connected(self) -> int:
        """Sites with a session."""
        return len(self._sessions)

    @property
    def ready(self) -> list[SiteName]:
        """Sites that can take tasks, in name order."""
        return sorted(site for site, session in self._sessions.items() if session.bounds and not session.has_left)

    def set_roster(self, roster: Mapping[SiteName, Bounds]) -> None:
        """Take the sites that may participate from now on."""
        dropped = self._roster.keys() - roster.keys()
        self._roster = dict(roster)
        for site in sorted(dropped):
            self._drop(site)
        for site, bounds in sorted(roster.items()):
            if bounds.releases:
                self._report(SiteReleased(site, bounds.releases))
        self._wake()

    async def open(self, site: SiteName, call: Call) -> Session:
        """Begin a session once the roster has the site; any older one of it is superseded.

        Raises:
            IdentityError: the roster still lacks it after the grace time.
        """
        await self._wait_for_roster(site)
        older = self._sessions.get(site)
        session = Session(site=site, call=call)
        self._sessions[site] = session
        if self._end is not None:
            session.send(self._end)
            session.end()
        if older is not None:
            older.call.end(ConflictError(f"superseded by a newer session of {site}: do not connect again"))
        self._wake()
        return session

    def set_ready(
        self,
        session: Session,
        *,
        train_examples: int,
        validation_examples: int,
        at_work: tuple[RoundNumber, Attempt] | None = None,
    ) -> None:
        """Take a site's word that it can take tasks, within its roster's bounds; `at_work`: as `SiteReady` has it."""
        if not self.is_current(session):
            return
        declared = self._roster[session.site]
        session.bounds = Bounds(
            train_examples=min(train_examples, declared.train_examples),
            validation_examples=min(validation_examples, declared.validation_examples),
        )
        self._bounds[session.site] = session.bounds
        self._stop_grace(session.site)
        self._report(SiteReady(session.site, at_work))

    def close(self, session: Session) -> None:
        """Note that a session is over; its site has its grace time from now."""
        if not self.is_current(session):
            return
        del self._sessions[session.site]
        if session.bounds is not None and not session.has_left:
            self._stop_grace(session.site)
            self._graces[session.site] = self._clock.timer(self._grace_s, lambda: self._lose(session.site))
        self._wake()

    def is_current(self, session: Session) -> bool:
        """Whether this is the site's present session."""
        return self._sessions.get(session.site) is session

    def is_member(self, site: SiteName) -> bool:
        """Whether the roster has the site."""
        return site in self._roster

    def bounds(self, site: SiteName) -> Bounds | None:
        """Most a site may claim; None if it was never ready."""
        return self._bounds.get(site) if site in self._roster else None

    def inlined(self, site: SiteName) -> dict[str, bytes]:
        """Return what the site's session was last sent inside a task, digest by name, to be kept up by the sender."""
        session = self._sessions.get(site)
        return session.inlined if session is not None else {}

    def send(self, site: SiteName, reply: pb.ParticipateReply, *, when_ready: bool = True) -> bool:
        """Queue a message for a site, if it is ready; tell whether it is.

        A site that does not read what it is sent is disconnected.

        Args:
            site: who gets it.
            reply: the message.
            when_ready: False: a session is enough; it reads the message after its welcome.
        """
        session = self._sessions.get(site)
        if session is None or (when_ready and session.bounds is None):
            return False
        try:
            session.send(reply)
        except LimitError as error:
            session.call.end(error)
            return False
        return True

    async def finish(self, reply: pb.ParticipateReply, within_s: float) -> None:
        """Send everybody the end, those too that come later, and wait until all sessions are over or the time is."""
        self._end = reply
        for session in list(self._sessions.values()):
            session.send(reply)
            session.end()
        await self._wait_until(lambda: not self._sessions, within_s)

    def stop(self) -> None:
        """Forget every timer."""
        for site in list(self._graces):
            self._stop_grace(site)

    async def _wait_for_roster(self, site: SiteName) -> None:
        if not await self._wait_until(lambda: site in self._roster, self._grace_s):
            raise IdentityError(f"{site} is not among the sites of this experiment: its envoy accepts first")

    async def _wait_until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Wait for a condition, looked at whenever something changes; tell whether it came in time."""
        is_late = False

        def expire() -> None:
            nonlocal is_late
            is_late = True
            self._wake()

        timer = self._clock.timer(within_s, expire)
        try:
            while not condition():
                if is_late:
                    return False
                await self._changed.wait()
        finally:
            timer.cancel()
        return True

    def _drop(self, site: SiteName) -> None:
        self._stop_grace(site)
        session = self._sessions.pop(site, None)
        if session is not None:
            session.call.end(IdentityError(f"{site} is no longer among the sites of this experiment"))
        if self._bounds.pop(site, None) is not None:
            self._report(SiteLost(site, "left the experiment"))

    def _lose(self, site: SiteName) -> None:
        self._graces.pop(site, None)
        self._report(SiteLost(site))

    def _stop_grace(self, site: SiteName) -> None:
        timer = self._graces.pop(site, None)
        if timer is not None:
            timer.cancel()

    def _wake(self) -> None:
        """Let every waiter look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
