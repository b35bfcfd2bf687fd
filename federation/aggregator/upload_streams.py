"""Who sends an update now: at most one stream a site that counts, and how each is ended from outside.

Rules, in order:

1. A newer stream of a site ends its older one, and waits until that has let go of the spool.
2. When an attempt closes, its streams end with CLOSED_ROUND, which is counted; where rounds overlap, those that answer
   another task than the one their site goes on with. A site that is lost may resume: its stream ends with
   TransportError.
3. What is present here is looked at again by who takes the update: one that was ended meanwhile may not count.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federation.errors import Refusal, TransportError, UpdateRejectedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from federation.aggregator.receptions import Asking
    from federation.errors import FederationError
    from federation.names import SiteName
    from federation.telemetry.metrics import Metrics
    from federation.transport.calls import Call

CLOSED = "the round closed before the update was whole: drop it"


@dataclass(eq=False, slots=True, kw_only=True)
class UploadStream:
    """One update on its way.

    Attributes:
        site: who sends it.
        asking: the task that its header says it answers.
        call: what it comes in; None for one that came in its site's session, which goes on.
        takes_ticket: its sender would send it over a line of its own.
        done: set once it has let go of the spool.
    """

    site: SiteName
    asking: Asking
    call: Call | None
    takes_ticket: bool
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, error: FederationError) -> bool:
        """End its call; False if it has none: it is here whole, and is looked at once more before it counts."""
        if self.call is None:
            return False
        self.call.end(error)
        return True

    def is_kept(self, but: Mapping[SiteName, Asking]) -> bool:
        """Tell whether it answers the task its site goes on with."""
        return but.get(self.site) == self.asking


class UploadStreams:
    """The streams of one experiment.

    Args:
        metrics: counts those that are ended because their round closed.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._of: dict[SiteName, UploadStream] = {}
        self._locks: defaultdict[SiteName, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._in_spool: set[UploadStream] = set()

    def __len__(self) -> int:
        return len(self._of)

    @contextlib.asynccontextmanager
    async def present(self, stream: UploadStream) -> AsyncIterator[None]:
        """Let a stream be its site's, and enter once it alone touches the spool (rule 1)."""
        older = self._of.get(stream.site)
        if older is not None:
            older.end(TransportError("superseded by a newer upload of the same site"))
        self._of[stream.site] = stream
        try:
            async with self._locks[stream.site]:
                self._in_spool.add(stream)
                try:
                    yield
                finally:
                    self._in_spool.discard(stream)
                    stream.done.set()
        finally:
            if self.is_present(stream):
                del self._of[stream.site]

    def is_present(self, stream: UploadStream) -> bool:
        """Tell whether a stream is its site's, and was not ended from here."""
        return self._of.get(stream.site) is stream

    def let_go(self, site: SiteName) -> None:
        """Note that a site's update is admitted: its call must not be ended by a closing that this may bring about."""
        self._of.pop(site, None)

    def close(self, but: Mapping[SiteName, Asking]) -> list[UploadStream]:
        """End all but those that answer the task their site goes on with; return those that were ended."""
        ended = [stream for stream in self._of.values() if not stream.is_kept(but)]
        for stream in ended:
            self._close(stream)
        return ended

    def turn_to(self, sites: Iterable[SiteName], asking: Asking) -> None:
        """End what sites that are given a task still send for another one."""
        for site in sites:
            stream = self._of.get(site)
            if stream is not None and stream.asking != asking:
                self._close(stream)

    def interrupt(self, site: SiteName) -> None:
        """End the stream of a site that is lost; it goes on where it was if the site comes back to the same task."""
        stream = self._of.pop(site, None)
        if stream is not None:
            stream.end(TransportError("the session of this site is lost: join again, then resume the upload"))

    async def settle(self, but: Mapping[SiteName, Asking]) -> None:
        """Return once no ended stream touches the spool any more; arguments as `close`."""
        for stream in [stream for stream in self._in_spool if not stream.is_kept(but)]:
            await stream.done.wait()

    def _close(self, stream: UploadStream) -> None:
        del self._of[stream.site]
        if stream.end(UpdateRejectedError(Refusal.CLOSED_ROUND, CLOSED)):  # else it is counted when it is refused
            self._metrics.updates_refused_total.labels(Refusal.CLOSED_ROUND.value).inc()
