"""Workers as processes: one resident model each, models and updates in shared memory, orders over pipes.

Rules:

1. Where the system can fork, workers are copies of this process, made before torch computes in it, so that nothing is
   pickled and nothing loaded twice. Elsewhere, and where they compute on CUDA, which does not survive a fork, they are
   spawned: each is sent what it needs, and loads the experiment from its folder (`federation.simulation.luggage`).
2. Orders and answers are small; models and updates lie in shared memory and are read and written in place.
3. A worker has two parcels of orders at hand and gets the next when it answers: it does not wait for the parent, and
   all finish together. A parcel is one order, or as many as are worth a message (`federation.simulation.parcels`). Any
   worker may serve any site, and the parent settles what they keep, so it is in files, even with one worker.
4. A worker that dies is started again once, and its orders are given again, one by one, before others: they give the
   same answers. The second time the run ends, with the site named.
5. Workers do not see Ctrl-C, and end when the parent does, however it ends: their pipe closes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import sys
import tempfile
import time
import warnings
from collections import deque
from dataclasses import replace
from multiprocessing import connection, shared_memory
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from federation.simulation import luggage
from federation.simulation.bench import Bench, EvaluateAnswer, EvaluateOrder, TrainAnswer, TrainOrder, settle
from federation.simulation.devices import device_of
from federation.simulation.executors import SimulationError
from federation.simulation.memory import Arena
from federation.simulation.parcels import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from federation.simulation.bench import KeepOrder, Premises
    from federation.simulation.memory import Layout

_Order = TypeVar("_Order", TrainOrder, EvaluateOrder)
_PROTOCOL = 5
"""Of pickle, used as it is: a pipe's own pickler is made anew for each message, which takes longer than a small one."""
_AT_HAND = 2
"""Parcels a worker holds: the one it works on, and the next."""
START_METHOD: Literal["fork", "spawn"] = "fork" if sys.platform == "linux" else "spawn"
"""How workers begin (rule 1). macOS can fork, but its own libraries do not survive it."""


class ProcessExecutor:
    """Several worker processes.

    Args:
        premises: what to work on.
        layout: of the memory.
        workers: how many processes, 1 or more.
        source: the experiment's folder, if it came from one.

    Raises:
        PlanError: workers are spawned here, and something they need cannot be pickled.
        SimulationError: a worker could not load the experiment.
    """

    def __init__(self, premises: Premises, layout: Layout, *, workers: int, source: Path | None) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if premises.state is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="federation-simulation-")
            premises = replace(premises, state=Path(self._temporary.name))
        self._premises = replace(premises, is_shared=True)  # `keep` settles in their files from here
        self._layout = layout
        self._source = source
        self._memory = shared_memory.SharedMemory(create=True, size=layout.nbytes)
        self.arena = Arena(layout, self._memory.buf)
        self._workers: list[_Worker] = []
        self._pace = Pace(workers)
        try:
            for number in range(workers):
                self._workers.append(self._start(number))
            for worker in self._workers:
                worker.wait()
        except BaseException:
            self.close()
            raise

    def train(self, orders: Sequence[TrainOrder]) -> Iterator[TrainAnswer]:
        """See `Executor.train`."""
        return self._serve(orders)

    def evaluate(self, orders: Sequence[EvaluateOrder]) -> Iterator[EvaluateAnswer]:
        """See `Executor.evaluate`."""
        return self._serve(orders)

    def keep(self, orders: Sequence[KeepOrder]) -> None:
        """See `Executor.keep`."""
        assert self._premises.state is not None  # noqa: S101 - made above
        for order in orders:
            settle(self._premises.state, order)

    def close(self) -> None:
        """See `Executor.close`."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self.arena.release()
        with contextlib.suppress(BufferError):  # a view that somebody still holds keeps the mapping, not the name
            self._memory.close()
        with contextlib.suppress(FileNotFoundError):
            self._memory.unlink()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _start(self, number: int) -> _Worker:
        pipes = [worker.pipe for worker in self._workers]
        return _Worker.start(number, self._premises, self.arena, self._memory.name, self._source, pipes)

    def _serve(self, orders: Sequence[_Order]) -> Iterator[Any]:
        waiting = self._pace.parcels(orders)
        began, left = time.perf_counter(), len(orders)
        self._give(waiting)
        while left:
            for worker in self._answering(is_any=bool(waiting)):
                try:
                    answers = worker.take()
                except (EOFError, ConnectionError):
                    lost = self._replace(worker)
                    # One by one: should another die, it is known where.
                    waiting.extendleft([order] for parcel in reversed(lost) for order in reversed(parcel))
                    self._give(waiting)
                    continue
                self._give(waiting)
                left -= len(answers)
                if not left:
                    self._pace.learn(orders, time.perf_counter() - began)
                yield from answers

    def _give(self, waiting: deque[Sequence[_Order]]) -> None:
        """Give workers what they may have at hand: never more, as nobody reads answers meanwhile and pipes fill up."""
        for held in range(_AT_HAND):
            for worker in self._workers:
                if waiting and len(worker.orders) <= held:
                    worker.give(waiting.popleft())

    def _answering(self, *, is_any: bool) -> list[_Worker]:
        """Return whom to hear: who has answered, or, where nobody is to be given more, all that will, in turn."""
        busy = [worker for worker in self._workers if worker.orders]
        if not is_any:
            return busy
        ready = connection.wait([worker.pipe for worker in busy])
        return [worker for worker in busy if worker.pipe in ready]

    def _replace(self, worker: _Worker) -> list[Any]:
        """Start a worker instead of one that died, and return the parcels that were lost with it (rule 4)."""
        place = self._workers.index(worker)
        lost, site = list(worker.orders), worker.orders[0][0].site
        worker.end()
        if worker.is_second:
            raise SimulationError(
                f"a worker died while site {site} worked (exit code {worker.process.exitcode}), as did the one before; "
                "look for what ends it, such as too little memory, or use fewer workers"
            )
        fresh = self._start(worker.number)
        fresh.wait()
        fresh.is_second = True
        self._workers[place] = fresh
        return lost


class _Worker:
    """The parent's end of one worker."""

    def __init__(self, number: int, process: BaseProcess, pipe: Connection) -> None:
        self.number = number
        self.process = process
        self.pipe = pipe
        self.orders: deque[Any] = deque()
        self.is_second = False

    @classmethod
    def start(
        cls,
        number: int,
        premises: Premises,
        arena: Arena,
        memory: str,
        source: Path | None,
        pipes: Sequence[Connection],
    ) -> _Worker:
        method = "spawn" if device_of(premises.experiment).startswith("cuda") else START_METHOD
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        if method == "fork":
            start: Any = (premises, arena, theirs, [ours, *pipes])
        else:
            start = (luggage.pack(premises, source), (arena.layout, memory), theirs, [])
        process = context.Process(target=_work, args=start, daemon=True)  # type: ignore[attr-defined]  # both have it
        with warnings.catch_warnings():
            # BLAS keeps threads that idle; it looks after itself across a fork, and torch has not started any.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        return cls(number, process, ours)

    def wait(self) -> None:
        """Wait until it is ready for orders."""
        try:
            problem = self.pipe.recv()
        except (EOFError, ConnectionError):
            problem = "it ended; what it printed says why"
        if problem is not None:
            raise SimulationError(f"worker {self.number} could not load the experiment: {problem}")

    def give(self, order: Any) -> None:
        self.orders.append(order)
        with contextlib.suppress(BrokenPipeError):  # it died: the next `take` finds out
            self.pipe.send_bytes(pickle.dumps(order, _PROTOCOL))

    def take(self) -> Any:
        answer = pickle.loads(self.pipe.recv_bytes())  # noqa: S301 - of our own child
        self.orders.popleft()
        return answer

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


def _work(
    premises: Premises | luggage.Luggage,
    memory: Arena | tuple[Layout, str],
    pipe: Connection,
    inherited: Sequence[Connection],
) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in inherited:
        other.close()  # else our copies of the parent's ends would keep pipes open when the parent is gone
    block: shared_memory.SharedMemory | None = None
    try:
        if isinstance(premises, luggage.Luggage):
            premises = luggage.unpack(premises, contextlib.ExitStack())
        if isinstance(memory, Arena):
            arena = memory
        else:
            block = shared_memory.SharedMemory(memory[1])
            arena = Arena(memory[0], block.buf)
        bench = Bench(premises, arena)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            orders = pickle.loads(pipe.recv_bytes())  # noqa: S301 - of our own parent
            pipe.send_bytes(pickle.dumps(bench.serve(orders), _PROTOCOL))
    if block is not None:  # else it is closed at some moment of the interpreter's end, with views still there
        arena.release()
        block.close()
