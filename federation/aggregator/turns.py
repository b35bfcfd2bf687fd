"""Whose turn it is to upload: a few at a time, so that memory does not grow with the number of sites.

What a fast sender has under way is several megabytes: pieces being received, being parsed, being checked. So only a few
streams are read at a time, each to its end; the others are not even told what is held, and so send nothing. A sender
that is slow gives its turn away while it lets us wait: then it is not what fills memory, and it must not keep others
waiting.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_T = TypeVar("_T")

FEW_UPLOADS = 4
"""Streams read at a time: enough to keep two cores busy with checking and to hide one sender's pauses."""
PATIENCE_S = 0.25
"""How long a sender may let us wait before others go first: many times what a megabyte takes on a fast line."""


class Turns:
    """Turns for any number of uploads.

    Args:
        most: how many have theirs at a time.
        patience_s: how long one may pause and keep it, seconds.
    """

    def __init__(self, most: int = FEW_UPLOADS, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.slots = asyncio.Semaphore(most)


class Turn:
    """One upload's turn; `release` it at the end.

    Args:
        turns: shared with all other uploads.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._is_held = False

    async def take(self) -> None:
        """Wait for the turn, unless it is ours."""
        if not self._is_held:
            await self._turns.slots.acquire()
            self._is_held = True

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
        if self._is_held:
            self._is_held = False
            self._turns.slots.release()
