"""The loop in a thread: results, streams left half-way, signals, closing while somebody waits.

Ctrl-C in a real process is in `test_command`.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from federation.client.background import BackgroundLoop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

WAIT_S = 30


class Stream:
    """Yields numbers up to `length`, then waits for ever; remembers that it was closed, and in which thread."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.waits = threading.Event()
        self.closed = threading.Event()
        self.closed_in = ""

    async def numbers(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.length):
                yield number
            self.waits.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # its end waits too, as the end of a call does
            self.closed_in = threading.current_thread().name
            self.closed.set()


@pytest.fixture
def background() -> Iterator[BackgroundLoop]:
    made = BackgroundLoop("trial")
    yield made
    made.close()


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> None:
    raise LookupError("nothing there")


async def for_ever(begun: threading.Event) -> None:
    begun.set()
    await asyncio.Event().wait()


def in_a_thread(work: object) -> tuple[threading.Thread, list[BaseException]]:
    """Start `work`; what it raises is in the list once the thread has ended."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, raised


def test_a_coroutine_runs_in_the_loop_and_its_result_or_error_comes_back(background: BackgroundLoop) -> None:
    assert background.run(double(21)) == 42
    with pytest.raises(LookupError, match="nothing there"):
        background.run(fail())


def test_several_threads_use_one_loop(background: BackgroundLoop) -> None:
    got: list[int] = []
    threads = [threading.Thread(target=lambda n=n: got.append(background.run(double(n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(got) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_stream_is_read_to_its_end_falsy_items_included(background: BackgroundLoop) -> None:
    async def items() -> AsyncGenerator[object, None]:
        for item in (0, None, "", 3):
            yield item

    assert list(background.iterate(items())) == [0, None, "", 3]


def test_an_error_of_a_stream_comes_after_what_it_yielded(background: BackgroundLoop) -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 1
        raise LookupError("cut")

    stream = background.iterate(items())
    assert next(stream) == 1
    with pytest.raises(LookupError, match="cut"):
        next(stream)


def test_a_stream_left_half_way_is_closed_in_the_loop(background: BackgroundLoop) -> None:
    stream = Stream(5)
    for number in background.iterate(stream.numbers()):
        if number == 1:
            break
    assert stream.closed.is_set()
    assert stream.closed_in == "trial"


def test_a_stream_that_the_collector_ends_in_the_loops_own_thread_does_not_wait_for_itself(
    background: BackgroundLoop,
) -> None:
    stream = Stream(5)
    cycle: dict[str, object] = {"numbers": background.iterate(stream.numbers())}
    cycle["itself"] = cycle
    assert next(cycle["numbers"]) == 0  # type: ignore[call-overload]

    async def collect() -> None:
        gc.collect()

    del cycle
    background.run(collect())
    assert stream.closed.wait(WAIT_S)


def test_a_signal_in_the_middle_of_a_step_ends_the_stream(background: BackgroundLoop) -> None:
    stream = Stream(1)
    main = threading.get_ident()

    def interrupt() -> None:
        assert stream.waits.wait(WAIT_S)
        signal.pthread_kill(main, signal.SIGUSR1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        thread, _ = in_a_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(background.iterate(stream.numbers()))
        thread.join(WAIT_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stream.closed.is_set()


def test_whoever_waits_while_another_thread_closes_is_told(background: BackgroundLoop) -> None:
    stream, begun = Stream(0), threading.Event()
    reader, of_stream = in_a_thread(lambda: list(background.iterate(stream.numbers())))
    caller, of_call = in_a_thread(lambda: background.run(for_ever(begun)))
    assert stream.waits.wait(WAIT_S) and begun.wait(WAIT_S)
    background.close()
    for thread, raised in ((reader, of_stream), (caller, of_call)):
        thread.join(WAIT_S)
        assert [(type(error), str(error)) for error in raised] == [
            (RuntimeError, "the trial is closed: connect anew"),
        ]
    assert stream.closed.is_set()


def test_closing_ends_what_is_left_before_what_it_used(background: BackgroundLoop) -> None:
    stream, order = Stream(3), []
    left = background.iterate(stream.numbers())
    assert next(left) == 0

    async def last() -> None:
        order.append(stream.closed.is_set())

    background.close(last())
    background.close(last())  # twice is harmless
    assert order == [True]
    left.close()  # type: ignore[attr-defined]  # nothing is left to end


def test_a_closed_loop_has_no_thread_and_runs_nothing() -> None:
    background = BackgroundLoop("short-lived")
    background.close()
    assert "short-lived" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(RuntimeError, match="the short-lived is closed: connect anew"):
        background.run(double(1))


def test_the_loop_is_not_asked_to_wait_for_itself(background: BackgroundLoop) -> None:
    async def ask() -> int:
        return background.run(double(1))

    with pytest.raises(RuntimeError, match="cannot wait for itself"):
        background.run(ask())
