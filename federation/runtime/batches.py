"""Work in a thread on items that arrive one by one, such as the pieces of a transfer.

Handing one item to a thread and hearing back costs about a tenth of a millisecond and a fight for the interpreter lock,
as much as a megabyte's checksum. So small ones go several at a time, and the next ones gather while the thread is busy.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

_T = TypeVar("_T")

BATCH_BYTES = 2 << 20
"""What goes to a thread at a time, at least; one piece may be more."""


class Batches(Generic[_T]):
    """Runs `work` on all items, in order, never two batches at once.

    Args:
        work: takes one batch; blocks, and runs in the pool.
        pool: threads; None for those of the event loop.

    What `work` raises is raised by a later `put` or by `finish`, and items after it are dropped. Always end with
    `settle`, in a finally block: until then a thread may be using what the items belong to.
    """

    def __init__(self, work: Callable[[Sequence[_T]], None], pool: Executor | None = None) -> None:
        self._work = work
        self._pool = pool
        self._gathered: list[_T] = []
        self._size = 0
        self._job: asyncio.Future[None] | None = None

    async def put(self, item: _T, nbytes: int, *, at_once: bool = False) -> None:
        """Take an item; waits while a batch is full and the one before it is not done.

        Args:
            item: it.
            nbytes: its size.
            at_once: do not wait for more: items come slowly, and each is memory.
        """
        self._gathered.append(item)
        self._size += nbytes
        if at_once or self._size >= BATCH_BYTES:
            await self._finish_job()
            self._begin()

    def hurry(self) -> None:
        """Do not wait for more: what has gathered goes as soon as the batch before it is done."""
        job = self._job
        if job is not None and not job.done():
            job.add_done_callback(self._go_on)
        elif job is None or _is_good(job):
            self._begin()

    def _go_on(self, job: asyncio.Future[None]) -> None:
        if _is_good(job):
            self.hurry()

    async def finish(self) -> None:
        """Return once every item was worked on."""
        await self._finish_job()
        self._begin()
        await self._finish_job()

    async def settle(self) -> None:
        """Return once no thread works for us; unless something failed, every item was worked on. Raises nothing."""
        while self._job is not None or self._gathered:
            if self._job is None:
                self._begin()
            job, self._job = self._job, None
            if job is not None:
                await asyncio.wait({job})
                if not _is_good(job):
                    self._gathered, self._size = [], 0

    def _begin(self) -> None:
        if not self._gathered:
            return
        batch, self._gathered, self._size = self._gathered, [], 0
        self._job = asyncio.get_running_loop().run_in_executor(self._pool, self._work, batch)

    async def _finish_job(self) -> None:
        while (job := self._job) is not None:
            # Shielded: a thread cannot be stopped, so `settle` must find it still under way if we are cancelled.
            await asyncio.shield(job)
            if self._job is job:  # `hurry` may have begun the next one
                self._job = None


def _is_good(job: asyncio.Future[None]) -> bool:
    """Tell whether a job that is done did not fail."""
    return not job.cancelled() and job.exception() is None
