"""Blocking work beside the event loop, on files that the caller closes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run `function` in a thread; if the caller is cancelled, wait for it before the cancellation goes on.

    A thread cannot be stopped. Were it left behind with a descriptor that its caller then closes, it could write into
    whatever file is opened next under the same number.
    """
    async with started(function, *args, **kwargs) as work:
        return await asyncio.shield(work)


@contextlib.asynccontextmanager
async def started(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> AsyncIterator[asyncio.Future[_T]]:
    """Run `function` in a thread meanwhile; does not leave before the thread has, whatever cancels or is raised.

    Whoever awaits the future that is given shields it: a future that was cancelled says nothing about its thread.
    """
    loop = asyncio.get_running_loop()
    work = loop.run_in_executor(None, functools.partial(function, *args, **kwargs))
    try:
        yield work
    finally:
        was_cancelled = False
        while not work.done():
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError:
                was_cancelled = True
        if not work.cancelled():
            work.exception()  # looked at, so that nobody warns about it
        if was_cancelled:
            raise asyncio.CancelledError
