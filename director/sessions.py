"""A conversation over one bidirectional stream: what a peer says is handled in order, what we say is queued.

Rules, in order:

1. One task reads the peer's messages and hands each to its handler before it reads the next, so that a peer cannot
   flood us faster than we store what it says.
2. What is to be sent is put into an `Outbox` by anybody on the event loop and leaves in that order.
3. The stream ends when the peer ends it, when the outbox is closed, or with the error of whichever side failed first.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Generic, TypeVar

from federation.errors import FederationError, LimitError, MalformedMessageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

M = TypeVar("M")
R = TypeVar("R")

_MAX_WAITING = 10_000
"""Messages that may wait for a peer that does not read; beyond, its session is ended."""


class Outbox(Generic[M]):
    """Messages waiting to leave on one stream."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[M | BaseException | None] = asyncio.Queue()
        self._closed = False

    def put(self, message: M) -> None:
        """Queue a message; nothing if the outbox is closed."""
        if self._closed:
            return
        if self._waiting.qsize() >= _MAX_WAITING:
            self.close(LimitError(f"{_MAX_WAITING} messages wait for this peer, which does not read them"))
            return
        self._waiting.put_nowait(message)

    def close(self, error: BaseException | None = None) -> None:
        """End the stream after what is queued: in good order, or with `error`. The first call decides."""
        if not self._closed:
            self._closed = True
            self._waiting.put_nowait(error)

    async def drain(self) -> AsyncIterator[M]:
        """Yield messages until the outbox is closed.

        Raises:
            FederationError: what it was closed with.
        """
        while (item := await self._waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


async def first(requests: AsyncIterator[R], field: str) -> R:
    """Return the first message of a stream, which must carry `field` in its oneof ``message``.

    Raises:
        MalformedMessageError: the stream ended, or began with something else.
    """
    request = await anext(requests, None)
    if request is None:
        raise MalformedMessageError(f"the stream ended before its first message, {field}")
    got = request.WhichOneof("message")  # type: ignore[attr-defined]  # every stream message of ours has this oneof
    if got != field:
        raise MalformedMessageError(f"the first message must be {field}, got {got}")
    return request


async def converse(
    requests: AsyncIterator[R], handle: Callable[[R], Awaitable[None]], outbox: Outbox[M], *, name: str
) -> AsyncGenerator[M, None]:
    """Handle what comes and yield what goes, until either side is done.

    Args:
        requests: the peer's messages.
        handle: called with each, one at a time.
        outbox: what to send; closed when the peer is done.
        name: of the reading task.
    """

    async def read() -> None:
        """Handle requests to their end; however it comes, the stream ends with it."""
        try:
            async for request in requests:
                await handle(request)
            outbox.close()
        except FederationError as error:
            outbox.close(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the stream must end with whatever went wrong, or the peer would wait for ever
            outbox.close(error)

    reader = asyncio.create_task(read(), name=name)
    try:
        async for message in outbox.drain():
            yield message
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
