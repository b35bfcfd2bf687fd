"""Whose turn it is to upload: a few at a time, so that memory does not grow with the number of sites.

What a fast sender has under way is several megabytes: pieces being received, being parsed, being checked. So only a few
streams are read at a time, each to its end; the others are not even told what is held, and so send nothing.

Rules, in order:

1. A turn is kept by bytes, not by messages: whoever lets us wait for `PATIENCE_S` in all before `CROWD_PIECE_BYTES`
   more have come, or what is missing of its upload if that is less, gives its turn away. With those bytes its patience
   begins anew. So in a crowd a turn that is kept moves at least 10 MB/s. Where few upload, pieces are larger and turns
   are lost sooner, but there are enough for all.
2. Only waiting for the sender counts, from the moment the turn is granted; our own work on its pieces does not.
3. A sender that gave its turn away is not what fills memory: the piece it is at is taken when it is whole, and for the
   next one it queues again, behind all who wait. So a slow line goes on at its own pace as long as there are turns
   enough, and one that sends nothing costs the others at most `PATIENCE_S` of one turn each time round. What waits for
   more of it to come waits no longer (`Turn.when_lost`): it may not come for hours.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from federation.runtime.clock import Cancellable, Clock

_T = TypeVar("_T")

FEWEST_TURNS = 4
"""Enough to keep two cores busy with checking and to hide one sender's pauses."""
TURNS_PER_CORE = 2
PATIENCE_S = 0.05
"""How long a sender may let us wait for a piece's worth of bytes before others go first: many times what it takes on a
fast line."""
CROWD_PIECE_BYTES = 512 << 10
"""Size of a piece while many sites upload: of each of them that is out of turn, as much as one may be under way."""


def turns_here() -> int:
    """Return how many streams may be read at a time on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(FEWEST_TURNS, TURNS_PER_CORE * cores)


class Turns:
    """Turns for any number of uploads.

    Args:
        clock: measures how long senders let us wait.
        most: how many have theirs at a time; None for what suits the machine.

    Attributes:
        most: how many have theirs at a time.
    """

    def __init__(self, clock: Clock, most: int | None = None) -> None:
        self.clock = clock
        self.most = turns_here() if most is None else most
        self.slots = asyncio.Semaphore(self.most)


class Turn:
    """One upload's turn; `release` it at the end.

    Args:
        turns: shared with all other uploads.
        missing: bytes of the upload that are still to come.

    Attributes:
        is_held: it is ours now.
        when_lost: called when its sender lets us wait for too long.
    """

    def __init__(self, turns: Turns, missing: int) -> None:
        self.is_held = False
        self.when_lost: Callable[[], None] = lambda: None
        self._turns = turns
        self._missing = missing
        self._owed = 0
        self._patience_s = PATIENCE_S
        self._waiting: tuple[float, Cancellable] | None = None  # since when, and what ends it

    async def take(self) -> None:
        """Wait for the turn, unless it is ours; from then on its sender lets us wait."""
        if not self.is_held:
            await self._turns.slots.acquire()
            self.is_held = True
            self._renew()
            self._begin_waiting()

    async def read(self, requests: AsyncIterator[_T]) -> _T | None:
        """Return the next message of a stream when it is this upload's turn; None at its end."""
        await self.take()
        self._begin_waiting()
        try:
            return await anext(requests, None)
        finally:
            self._end_waiting()

    def count(self, nbytes: int) -> None:
        """Note that so many bytes of the upload came, in turn or out of it."""
        self._missing -= nbytes
        self._owed -= nbytes
        if self._owed <= 0:
            self._renew()

    def release(self) -> None:
        """Let the next one have its turn; nothing if it was not ours."""
        self._end_waiting()
        if self.is_held:
            self.is_held = False
            self._turns.slots.release()

    def _lose(self) -> None:
        self.release()
        self.when_lost()

    def _renew(self) -> None:
        self._owed = min(CROWD_PIECE_BYTES, self._missing)
        self._patience_s = PATIENCE_S

    def _begin_waiting(self) -> None:
        if self._waiting is None:
            clock = self._turns.clock
            self._waiting = (clock.monotonic(), clock.timer(self._patience_s, self._lose))

    def _end_waiting(self) -> None:
        if self._waiting is not None:
            since, timer = self._waiting
            self._waiting = None
            timer.cancel()
            self._patience_s -= self._turns.clock.monotonic() - since
