"""Which order of a batch is whose: what workers share so that whoever is free takes the next, without asking anybody.

Cores differ in speed from one moment to the next, so a batch that is divided beforehand ends when the slowest does.
Rules:

1. A board shows one batch of orders, by number. Orders are taken in turn, each once, under a lock that is held for a
   few instructions. Who is late, and still has the orders of an earlier batch, gets none.
2. Several orders may be taken at once, but never more than three quarters of a worker's share of what is left, so that
   all end together.
3. Of each order it is known who took it, so what a worker that died had is known too. Taking is complete when the next
   order moves on: who dies before has taken nothing. Its lock is given back by `mend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.synchronize import Lock

_BATCH, _NEXT, _TOTAL, _HEAD = range(4)
_NOBODY = -1
MEND_S = 1.0
"""Seconds after which a lock is taken for a dead worker's: the living hold it for microseconds."""


class Board:
    """The board, seen by one process.

    Args:
        memory: shared by all, `nbytes` of the most orders a batch can have, or more.
        lock: shared by all.
        workers: how many take from it.
    """

    def __init__(self, memory: memoryview, lock: Lock, workers: int) -> None:
        self._workers = workers
        self._memory = memory
        words = np.frombuffer(memory, dtype=np.int32)
        self._head, self._takers, self._lock = words[:_HEAD], words[_HEAD:], lock

    @staticmethod
    def nbytes(orders: int) -> int:
        """Return the bytes of a board for batches of up to so many orders."""
        return 4 * (_HEAD + orders)

    def show(self, orders: int) -> int:
        """Show a batch of so many orders, and return its number; every order of the one before was answered."""
        with self._lock:
            self._takers[:orders] = _NOBODY
            self._head[_NEXT], self._head[_TOTAL] = 0, orders
            self._head[_BATCH] += 1
            return int(self._head[_BATCH])

    def take(self, batch: int, worker: int, most: int) -> range:
        """Take the next orders of a batch, up to `most` of them (rule 2); none if none is left."""
        with self._lock:
            first = int(self._head[_NEXT])
            left = int(self._head[_TOTAL]) - first
            if self._head[_BATCH] != batch or left <= 0:
                return range(0)
            end = first + min(most, -(-3 * left // (4 * self._workers)))
            self._takers[first:end] = worker
            self._head[_NEXT] = end
            return range(first, end)

    def close(self) -> None:
        """Take what is left off the board: nobody gets an order any more."""
        self.mend()
        self._head[_NEXT] = self._head[_TOTAL]

    def mend(self) -> None:
        """Give back the lock of a worker that died with it (rule 3)."""
        self._lock.acquire(timeout=MEND_S)
        self._lock.release()

    @property
    def is_empty(self) -> bool:
        """Whether every order is taken."""
        return bool(self._head[_NEXT] >= self._head[_TOTAL])

    def taken_by(self, worker: int) -> Sequence[int]:
        """Return the orders a worker took, in turn."""
        found: Sequence[int] = np.flatnonzero(self._takers[: self._head[_NEXT]] == worker).tolist()
        return found

    def release(self) -> None:
        """Let go of the memory, so that it can be closed."""
        del self._head, self._takers
        self._memory.release()
