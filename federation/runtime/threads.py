"""Blocking work beside the event loop, on files that the caller closes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from concurrent.futures import Executor

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run `function` in a thread; if the caller is cancelled, wait for it before the cancellation goes on.

    A thread cannot be stopped. Were it left behind with a descriptor that its caller then closes, it could write into
    whatever file is opened next under the same number.
    """
    async with started(function, *args, **kwargs) as work:
        return await asyncio.shield(work)


def started(
    function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> contextlib.AbstractAsyncContextManager[asyncio.Future[_T]]:
    """Run `function` in one of the event loop's threads meanwhile; as `started_in`."""
    return started_in(None, functools.partial(function, *args, **kwargs))


@contextlib.asynccontextmanager
async def started_in(pool: Executor | None, work: Callable[[], _T]) -> AsyncIterator[asyncio.Future[_T]]:
    """Run `work` in a thread of `pool` meanwhile; does not leave before the thread has, whatever cancels or is raised.

    Whoever awaits the future that is given shields it: a future that was cancelled says nothing about its thread.
    """
    job = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        yield job
    finally:
        was_cancelled = False
        while not job.done():
            try:
                await asyncio.wait({job})
            except asyncio.CancelledError:
                was_cancelled = True
        if not job.cancelled():
            job.exception()  # looked at, so that nobody warns about it
        if was_cancelled:
            raise asyncio.CancelledError
