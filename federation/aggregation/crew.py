"""Several threads at one row of work, whose results come in the order in which it was begun.

1. The calling thread is one of them: where it would wait for a result it does what nobody else has begun. So c threads
   are c - 1 of a pool and the one that reads, writes and hashes between results, and one thread is no pool at all.
2. What is begun and not taken is the caller's to bound: it is what lies in memory.
3. The order of results does not depend on who did what; pieces of work must not depend on one another.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Crew(Generic[T]):
    """Does work in threads. Leaving its context waits for what they are at, and forgets the rest.

    Args:
        threads: how many, the calling one included.
        name: of the others, for who looks at a process.
    """

    def __init__(self, threads: int, name: str = "crew") -> None:
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix=name) if threads > 1 else None
        self._begun: deque[_Work[T]] = deque()

    def __len__(self) -> int:
        """Return how many results are to be taken."""
        return len(self._begun)

    def begin(self, work: Callable[[], T]) -> None:
        """Have work done, by whoever is free first."""
        self._begun.append(_Work(work, self._pool))

    def take(self) -> T:
        """Return the result of the work that was begun first of those not taken.

        Raises:
            IndexError: there is none.
            Exception: whatever the work raised.
        """
        first = self._begun.popleft()
        first.help()
        for later in self._begun:
            if first.is_done:
                break
            later.help()
        return first.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class _Work(Generic[T]):
    def __init__(self, work: Callable[[], T], pool: ThreadPoolExecutor | None) -> None:
        self._work = work
        self._future: Future[T] = Future() if pool is None else pool.submit(work)

    @property
    def is_done(self) -> bool:
        return self._future.done()

    def help(self) -> None:
        """Do it here and now, if nobody has begun it."""
        if self._future.cancel():
            self._future = Future()
            try:
                self._future.set_result(self._work())
            except Exception as error:
                self._future.set_exception(error)

    def result(self) -> T:
        return self._future.result()
