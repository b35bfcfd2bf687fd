"""The present connection to the aggregator, shared by those who use it and kept up by `session`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import TransportError
from federation.transport.lines import Line, LineRefusedError, NoLineError, carried

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.names import Epoch
    from federation.runtime.clock import Clock
    from federation.transport.lines import BulkAddress
    from federation.transport.methods import BidiCall, Stub
    from federation.v1 import aggregator_pb2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One welcomed session.

    Attributes:
        stub: calls of the aggregator, over the session's channel.
        call: the session's stream.
        epoch: epoch of the aggregator.
        takes_updates: small updates may go through the session.
        bulk: where lines for large payloads are dialled; None: there are none.
    """

    stub: Stub
    call: BidiCall
    epoch: Epoch
    takes_updates: bool = False
    bulk: BulkDialler | None = None

    @property
    def usable_bulk(self) -> BulkDialler | None:
        """What dials lines, if one is to be tried now."""
        return self.bulk if self.bulk is not None and self.bulk.is_usable else None


MOST_REFUSED = 3
"""Lines refused in a row; one may be so because its call had just ended."""
AGAIN_S = 600.0
"""A session may last for weeks, and what was in the way a moment."""


class BulkDialler:
    """Dials lines of one session. Where one is not to be had, the bytes travel in the calls for the next `AGAIN_S`.

    Args:
        address: where.
        clock: tells when to try again.
    """

    def __init__(self, address: BulkAddress, clock: Clock) -> None:
        self._address = address
        self._clock = clock
        self._not_before = clock.monotonic()
        self._refused = 0
        self._has_warned = False

    @property
    def is_usable(self) -> bool:
        """Whether a line is to be tried."""
        return self._clock.monotonic() >= self._not_before

    async def carry(self, ticket: bytes, nbytes: int, work: Callable[[Line], None]) -> None:
        """Dial, and run what reads or writes so many bytes over the line in a thread.

        Raises:
            NoLineError, LineRefusedError: there is no line to be had; if that may stay so, `is_usable` is false now.
            TransportError: it was cut.
            FederationError: as `work`.
        """
        line = Line()

        def dial_and_work() -> None:
            self._address.dial(line, ticket, nbytes)
            self._refused = 0
            self._has_warned = False
            work(line)

        try:
            await carried(line, dial_and_work)
        except (NoLineError, LineRefusedError) as error:
            self._refused += isinstance(error, LineRefusedError)
            if isinstance(error, NoLineError) or self._refused >= MOST_REFUSED:
                self._not_before = self._clock.monotonic() + AGAIN_S
                level = logging.DEBUG if self._has_warned else logging.WARNING
                self._has_warned = True
                _log.log(level, "large payloads travel inside calls, which is slower: %s", error)
            raise
        finally:
            line.close()


class LinkHolder:
    """The link that is up now, if one is."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()

    @property
    def current(self) -> Link | None:
        """The link, or None while it is down."""
        return self._link

    def set(self, link: Link | None) -> None:
        """Note that a link is up, or that none is."""
        self._link = link
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def get(self) -> Link:
        """Return the link, once there is one."""
        while self._link is None:
            await self._changed.wait()
        return self._link

    async def lost(self) -> None:
        """Return once there is none."""
        while self._link is not None:
            await self._changed.wait()

    async def replaced(self, link: Link) -> None:
        """Return once another link than `link` is up: what was refused or cut there is worth trying again."""
        while self._link is None or self._link is link:
            await self._changed.wait()

    async def say(self, request: aggregator_pb2.ParticipateRequest) -> bool:
        """Send on the session's stream; False if there is none or it ended: the aggregator will ask again.

        A caller who is cancelled meanwhile is so once the message is gone: the aggregator may answer it with the task
        that makes the caller's void, and cancelling a write would end the whole session.
        """
        link = self._link
        if link is None:
            return False
        async with self._writing:
            writing = asyncio.ensure_future(link.call.try_write(request))
            try:
                return await asyncio.shield(writing)
            except TransportError:
                return False  # the session was given up on this side
            except asyncio.CancelledError:
                await asyncio.wait({writing})
                if not writing.cancelled():
                    writing.exception()  # marks it as seen: the session's reader learns of it
                raise
