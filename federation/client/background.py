"""An event loop in a thread of its own, so that code that blocks can use code that waits.

Rules:

1. `run` hands a coroutine to the loop and blocks until it is done; `iterate` does the same with an async generator,
   item by item: the generator stands still between items.
2. Ctrl-C, or a signal whose handler exits, ends the waiting thread at once; what it waited for is cancelled.
3. A generator that is left half-way is closed in the loop, so that a call it reads is ended and not only forgotten.
   The garbage collector may do that from any thread, the loop's own among them, which must not wait for itself.
4. `close` first cancels all that is left, then runs what closes the things it used, then ends the thread. Whoever still
   waits for something, in another thread, gets RuntimeError, as whoever comes later does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Iterator

_Result = TypeVar("_Result")


class BackgroundLoop:
    """One event loop and its thread, from now until `close`.

    Args:
        name: of the thread, and of us in error texts.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._is_closing = False
        # What is handed in is handed in before `close` looks, or not at all. Reentrant: the collector may end a stream
        # in the very thread that holds it.
        self._ordering = threading.RLock()
        self._endings: set[asyncio.Task[None]] = set()
        # A daemon thread: a program that forgets to close us can end all the same.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine in the loop; block until it is done and return its result.

        Raises:
            RuntimeError: this is closed, or was closed meanwhile by another thread; or the loop's own thread calls.
            BaseException: what the coroutine raised, and what a signal's handler raised here.
        """
        with self._ordering:
            if self._is_closing or threading.current_thread() is self._thread:
                work.close()
                raise self._refusal()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if not self._is_closing:
                raise
            raise self._refusal() from None
        except BaseException:  # of the coroutine, then nothing is left to cancel; or of a signal's handler
            future.cancel()
            raise

    def iterate(self, stream: AsyncGenerator[_Result, None]) -> Iterator[_Result]:
        """Yield what an async generator yields, which runs in the loop; closes it however this ends.

        Raises:
            RuntimeError: as `run`.
            BaseException: what the generator raised, and what a signal's handler raised here.
        """
        reading: asyncio.Task[Any] | None = None

        async def step() -> tuple[_Result, ...]:
            nonlocal reading
            reading = asyncio.current_task()
            try:
                return (await anext(stream),)
            except StopAsyncIteration:
                return ()

        async def end() -> None:
            if reading is not None and not reading.done():  # a signal came in the middle of a step
                _cancel(reading)
                await asyncio.wait([reading])
            await stream.aclose()

        try:
            while item := self.run(step()):
                yield item[0]
        finally:
            self._finish(end())

    def close(self, last: Coroutine[Any, Any, object] | None = None) -> None:
        """Cancel all that is left, run `last`, end the thread; later calls change nothing.

        Args:
            last: closes what the cancelled work used, such as a channel.
        """
        shutting = self._shut(last)
        with self._ordering:
            if self._is_closing:
                shutting.close()
                if last is not None:
                    last.close()
                return
            self._is_closing = True
            future = asyncio.run_coroutine_threadsafe(shutting, self._loop)
        try:
            future.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _shut(self, last: Coroutine[Any, Any, object] | None) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            _cancel(task)
        await asyncio.gather(*left, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        if last is not None:
            await last

    def _finish(self, end: Coroutine[Any, Any, None]) -> None:
        """Run what ends a stream, unless `close` does it."""
        if self._is_closing:
            end.close()
        elif threading.current_thread() is self._thread:
            ending = self._loop.create_task(end, name=f"{self._name}: end of a stream")
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        else:
            self.run(end)

    def _refusal(self) -> RuntimeError:
        if self._is_closing:
            return RuntimeError(f"the {self._name} is closed: connect anew")
        return RuntimeError(f"the event loop of the {self._name} cannot wait for itself: await instead")


def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task once: again, and the end of what it reads would be broken off half-way."""
    if not task.cancelling():
        task.cancel()
