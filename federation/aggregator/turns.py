"""Whose turn it is to upload: a few at a time, so that memory does not grow with the number of sites.

What a fast sender has under way is several megabytes: pieces being received, being parsed, being checked. So only a few
streams are read at a time, each to its end; the others are not even told what is held, and so send nothing. A sender
that is slow gives its turn away while it lets us wait: then it is not what fills memory, and it must not keep others
waiting; it queues again for its next piece. However slow all senders are, every turn so moves a piece in `PATIENCE_S`:
20 MB/s each.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_T = TypeVar("_T")

FEWEST_TURNS = 4
"""Enough to keep two cores busy with checking and to hide one sender's pauses."""
TURNS_PER_CORE = 2
PATIENCE_S = 0.05
"""How long a sender may let us wait for a piece before others go first: many times what it takes on a fast line."""


def turns_here() -> int:
    """Return how many streams may be read at a time on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(FEWEST_TURNS, TURNS_PER_CORE * cores)


class Turns:
    """Turns for any number of uploads.

    Args:
        most: how many have theirs at a time; None for what suits the machine.
        patience_s: how long one may pause and keep it, seconds.

    Attributes:
        most: how many have theirs at a time.
    """

    def __init__(self, most: int | None = None, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.most = turns_here() if most is None else most
        self.slots = asyncio.Semaphore(self.most)


class Turn:
    """One upload's turn; `release` it at the end.

    Args:
        turns: shared with all other uploads.

    Attributes:
        is_held: it is ours now.
    """

    def __init__(self, turns: Turns) -> None:
        self.is_held = False
        self._turns = turns

    async def take(self) -> None:
        """Wait for the turn, unless it is ours."""
        if not self.is_held:
            await self._turns.slots.acquire()
            self.is_held = True

    async def read(self, requests: AsyncIterator[_T]) -> _T | None:
        """Return the next message of a stream when it is this upload's turn; None at its end."""
        await self.take()
        impatience = asyncio.get_running_loop().call_later(self._turns.patience_s, self.release)
        try:
            return await anext(requests, None)
        finally:
            impatience.cancel()

    def release(self) -> None:
        """Let the next one have its turn; nothing if it was not ours."""
        if self.is_held:
            self.is_held = False
            self._turns.slots.release()
