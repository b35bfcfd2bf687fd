"""What a worker process does: settles down, takes orders from the board, does them, answers.

The rules that are named here are those of `federation.simulation.processes`, whose processes these are.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import select
import signal
import sys
import time
from multiprocessing import connection, shared_memory
from typing import TYPE_CHECKING, Any, NamedTuple

from federation.runtime.exec_stub import die_with
from federation.simulation import luggage, messages
from federation.simulation.bench import Bench
from federation.simulation.board import Board
from federation.simulation.memory import Arena
from federation.simulation.messages import Batch, Forecast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Lock

    from federation.simulation.bench import Premises
    from federation.simulation.memory import Layout

ANSWER_S = 0.01
"""Seconds of work worth a message, and taken at once: telling the parent costs a thirtieth of it."""
LOOK_S = 0.002
"""Seconds (rule 7): as long as the parent takes between two rounds of a small model."""


class Place(NamedTuple):
    """Which worker one is, the core it has to itself, if any, and whether it looks for work (rule 7)."""

    number: int
    core: int | None
    looks: bool


def block_bytes(layout: Layout, sites: int) -> int:
    """Return the size of the block of memory that parent and workers share."""
    return _board_at(layout) + Board.nbytes(sites)


def _board_at(layout: Layout) -> int:
    return -(-layout.nbytes // 64) * 64


def parts_of(block: shared_memory.SharedMemory, layout: Layout) -> tuple[memoryview, memoryview]:
    """Return the arena's and the board's part of the block."""
    assert block.buf is not None  # noqa: S101 - it is open
    return block.buf[: layout.nbytes], block.buf[_board_at(layout) :]


def work(
    place: Place,
    premises: Premises | luggage.Luggage,
    memory: tuple[Arena, Board] | tuple[str, Layout, Lock, int],
    pipe: Connection,
    inherited: Sequence[Connection],
) -> None:
    """Live a worker's life.

    Args:
        place: which worker this is.
        premises: what to work on; packed where nothing is inherited.
        memory: arena and board, inherited; or the name of the block they are in, the arena's layout, the board's lock
            and the number of workers.
        pipe: to the parent; the first thing said is what went wrong, or None.
        inherited: copies of the parent's ends of pipes.
    """
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _settle_down(place)
    for other in inherited:
        other.close()  # else our copies of the parent's ends would keep pipes open when the parent is gone
    block: shared_memory.SharedMemory | None = None
    try:
        if isinstance(premises, luggage.Luggage):
            premises = luggage.unpack(premises, contextlib.ExitStack())
        if len(memory) == 2:
            arena, board = memory
        else:
            name, layout, lock, workers = memory
            block = shared_memory.SharedMemory(name)
            parts = parts_of(block, layout)
            arena, board = Arena(layout, parts[0]), Board(parts[1], lock, workers)
        turn = _Turn(place.number, Bench(premises, arena), board, pipe)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            if place.looks:
                look(pipe)
            turn.serve(messages.unpack(pipe.recv_bytes()))
    if block is not None:  # else it is closed at some moment of the interpreter's end, with views still there
        arena.release()
        board.release()
        block.close()


class _Turn:
    """A worker's way with batches: takes, does and answers."""

    def __init__(self, number: int, bench: Bench, board: Board, pipe: Connection) -> None:
        self._number = number
        self._bench = bench
        self._board = board
        self._pipe = pipe
        self._seconds: dict[type, float] = {}

    def serve(self, message: Batch | Forecast) -> None:
        """Do what can be had of a batch, and answer; or prepare for what is likely to come.

        Raises:
            ConnectionError: the parent is gone.
        """
        if isinstance(message, Forecast):
            self._bench.foresee(message.sites, message.round, _ear(self._pipe))
            return
        batch, orders = message
        if batch is None:
            self._answer(orders, self._bench.work(orders))
            return
        kind = type(orders[0])
        began, done, answers = time.perf_counter(), list[Any](), list[Any]()
        while taken := self._board.take(batch, self._number, self._most(kind)):
            parcel = [orders[place] for place in taken]
            answers += self._bench.work(parcel)
            done += parcel
            now = time.perf_counter()
            self._seconds[kind] = (now - began) / len(answers)
            if now - began >= ANSWER_S:
                self._answer(done, answers)
                began, done, answers = time.perf_counter(), [], []
            if taken.stop == len(orders):
                break  # nothing is left to ask the board for
        if answers:
            self._answer(done, answers)

    def _most(self, kind: type) -> int:
        """Return how many orders of a kind are taken at once: what they took before says how many `ANSWER_S` is.

        Nothing says what the first takes; and evaluating may take a thousandth of what training takes.
        """
        seconds = self._seconds.get(kind)
        return 1 if seconds is None else max(1, int(ANSWER_S / max(seconds, 1e-9)))

    def _answer(self, orders: Sequence[Any], answers: Sequence[Any]) -> None:
        self._pipe.send_bytes(messages.pack_answers(self._bench.finish(orders, answers)))


def _settle_down(place: Place) -> None:
    """Rules 5, 6 and 8."""
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None and parent.pid is not None:
        with contextlib.suppress(OSError):
            die_with(parent.pid)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            if place.core is not None:
                os.sched_setaffinity(0, {place.core})


def look(pipe: Connection) -> None:
    """Look for what comes through a pipe, for a while, before sleeping (rule 7)."""
    if sys.platform != "linux":
        return
    has_come, until = _ear(pipe), time.perf_counter() + LOOK_S
    while not has_come() and time.perf_counter() < until:
        os.sched_yield()


def wait(pipes: Sequence[Connection]) -> Sequence[object]:
    """Sleep until something has come through one of several pipes, and return those through which it has."""
    if sys.platform != "linux":
        return connection.wait(pipes)
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe.fileno(), select.POLLIN)
    ready = {number for number, _ in poll.poll()}
    return [pipe for pipe in pipes if pipe.fileno() in ready]


def _ear(pipe: Connection) -> Callable[[], bool]:
    """Return what tells whether something has come; a pipe's own way, as for `wait`, makes a selector each time."""
    if sys.platform != "linux":
        return pipe.poll
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    return lambda: bool(poll.poll(0))
