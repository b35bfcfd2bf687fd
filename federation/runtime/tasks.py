"""Named asyncio tasks with an owner: none is forgotten, and none dies unnoticed.

Rules:

1. An *eternal* task never ends by itself; if it does, with or without an exception, that is a fault.
2. A *job* may end; if it fails that is logged, and it is a fault only if the job is critical.
3. A fault cancels the body of the ``async with`` and is raised from it. The first fault wins; later ones are logged.
4. A task that somebody cancelled on purpose is no fault.
5. On the way out every task still running is cancelled and awaited, so nothing outlives its owner.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Supervisor:
    """Owner of a set of tasks, an asynchronous context manager.

    ::

        async with Supervisor("director") as supervisor:
            supervisor.eternal("scheduler", scheduler.run())
            supervisor.job("greeting", greet())
            await shutdown.draining.wait()
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._owner: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._fault: BaseException | None = None
        self._closing = False
        self._cancelled_owner = False

    async def __aenter__(self) -> Supervisor:
        self._owner = asyncio.current_task()
        return self

    def eternal(self, name: str, coroutine: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start a task whose end is a fault.

        Raises:
            RuntimeError: called outside the context manager.
        """
        return self._start(name, coroutine, eternal=True, critical=True)

    def job(self, name: str, coroutine: Coroutine[Any, Any, _T], *, critical: bool = False) -> asyncio.Task[_T]:
        """Start a task that may end; its failure is logged, and stops everything if `critical`.

        Raises:
            RuntimeError: called outside the context manager.
        """
        return self._start(name, coroutine, eternal=False, critical=critical)

    def _start(
        self, name: str, coroutine: Coroutine[Any, Any, _T], *, eternal: bool, critical: bool
    ) -> asyncio.Task[_T]:
        if self._owner is None or self._closing:
            coroutine.close()  # or Python would warn that it was never awaited
            raise RuntimeError(f"supervisor {self.name!r} is not running, so task {name!r} cannot start")
        task = asyncio.create_task(coroutine, name=f"{self.name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._on_done(done, eternal=eternal, critical=critical))
        return task

    def _on_done(self, task: asyncio.Task[Any], *, eternal: bool, critical: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None and not eternal:
            return
        if error is None:
            error = RuntimeError(f"task {task.get_name()!r} ended, but it should run as long as its owner")
        if self._closing or self._fault is not None or not critical:
            _log.error("task %s failed: %s", task.get_name(), error, exc_info=error)
            return
        self._fault = error
        if self._owner is not None:
            # The owner may be waiting for anything; cancelling is the only way to reach it.
            self._cancelled_owner = True
            self._owner.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        outside_cancel = await self._cancel_leftovers()
        if self._fault is None:
            if outside_cancel:
                raise asyncio.CancelledError
            return
        if self._cancelled_owner and self._owner is not None:
            # Take back our own cancellation; what remains was asked for by somebody else and goes first.
            if self._owner.uncancel() > 0 or outside_cancel:
                raise asyncio.CancelledError
        if error is not None and not isinstance(error, asyncio.CancelledError):
            _log.error("task of %s failed while its owner was failing: %s", self.name, self._fault)
            return
        raise self._fault

    async def _cancel_leftovers(self) -> bool:
        """Cancel and await every task; return whether somebody cancelled us meanwhile."""
        cancelled = False
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            try:
                await asyncio.wait(set(self._tasks))
            except asyncio.CancelledError:
                # A second cancellation must not leave tasks behind: remember it and go on waiting.
                cancelled = True
        return cancelled
