"""Workers as processes: one resident model each, models and updates in shared memory, orders over pipes.

Rules:

1. Where the system can fork, workers are copies of this process, made before torch computes in it, so that nothing is
   pickled and nothing loaded twice. Elsewhere, and where they compute on CUDA, which does not survive a fork, they are
   spawned: each is sent what it needs, and loads the experiment from its folder (`federation.simulation.luggage`).
2. Orders and answers are small; models and updates lie in shared memory and are read and written in place.
3. Each worker is sent all orders of a batch, once, and takes the next ones from a board when it is free
   (`federation.simulation.board`). It answers when nothing is left, or when what it did is worth a message; so the
   parent, who needs a core for that, is not woken for each. Any worker may serve any site, and the parent settles what
   they keep, so it is in files, even with one worker.
4. A worker that dies is started again once, and its orders are given again, one by one, before others: they give the
   same answers. The second time the run ends, with the site named.
5. Workers do not see Ctrl-C, and end when the parent does, however it ends: their pipe closes, and on Linux they are
   killed in the middle of their work, so that nobody writes into the run folder, or has its lock, when it goes on.
6. Waking a worker does not push the parent from its core, which has others to wake and a round to write down.
7. A worker that is done looks for the next batch for `LOOK_S` before it sleeps, and lets others have the core then: a
   core that slept is slow to wake, and begins with cold caches. So does the parent for the last answers.
8. Where workers have all cores of this process between them, each has one to itself: else two share one for a while.
   The parent has none then, so who has the first core does not look: what is done between two batches is done there,
   and takes no time from a worker that could begin the next one. That is where the parent wakes, as it keeps to that
   core while it waits; no longer, as threads that somebody starts meanwhile would keep to it for good.
9. Workers that look are told whom the next batch is likely to be of, and prepare for it while they would look.
10. What a copy inherits is never collected in it: its garbage is the parent's, and an end that waits for a thread, as a
   gRPC channel's does, would wait for ever where there is no such thread.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import tempfile
import warnings
from dataclasses import replace
from functools import cached_property
from multiprocessing import shared_memory
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from federation.simulation import luggage, messages
from federation.simulation.bench import FORESEEN, EvaluateAnswer, EvaluateOrder, TrainAnswer, TrainOrder, settle
from federation.simulation.board import Board
from federation.simulation.devices import device_of
from federation.simulation.executors import SimulationError
from federation.simulation.memory import Arena
from federation.simulation.worker import Place, block_bytes, look, parts_of, wait, work

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from federation.names import RoundNumber, SiteName
    from federation.simulation.bench import KeepOrder, Premises
    from federation.simulation.memory import Layout

_Order = TypeVar("_Order", TrainOrder, EvaluateOrder)
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
        self._memory = shared_memory.SharedMemory(create=True, size=block_bytes(layout, len(premises.shards)))
        memory = parts_of(self._memory, layout)
        self.arena = Arena(layout, memory[0])
        method = "spawn" if device_of(premises.experiment).startswith("cuda") else START_METHOD
        self._context: Any = multiprocessing.get_context(method)
        self._lock = self._context.Lock()
        self._board = Board(memory[1], self._lock, workers)
        self._count = workers
        self._workers: list[_Worker] = []
        # Read once: a worker may be started again while this thread keeps to one of them.
        self._cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
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

    def foresee(self, sites: Sequence[SiteName], number: RoundNumber) -> None:
        """See `Executor.foresee`."""
        looking = [worker for worker in self._workers if worker.looks]
        if sites and looking:
            message = messages.pack_forecast(sites[:FORESEEN], number)
            for worker in looking:
                worker.send(message)

    def keep(self, orders: Sequence[KeepOrder]) -> None:
        """See `Executor.keep`."""
        assert self._premises.state is not None  # noqa: S101 - made above
        for order in orders:
            settle(self._premises.state, order)

    def close(self) -> None:
        """See `Executor.close`."""
        self._board.close()
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._keep_to(self._cores)  # somebody may have left in the middle of a batch
        self.arena.release()
        self._board.release()
        with contextlib.suppress(BufferError):  # a view that somebody still holds keeps the mapping, not the name
            self._memory.close()
        with contextlib.suppress(FileNotFoundError):
            self._memory.unlink()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _start(self, number: int) -> _Worker:
        place = self._place(number)
        ours, theirs = self._context.Pipe()
        if self._context.get_start_method() == "fork":
            others = [ours, *(worker.pipe for worker in self._workers)]
            start: Any = (place, self._premises, (self.arena, self._board), theirs, others)
        else:
            memory = (self._memory.name, self._layout, self._lock, self._count)
            start = (place, luggage.pack(self._premises, self._source), memory, theirs, [])
        process = self._context.Process(target=work, args=start, daemon=True)
        with warnings.catch_warnings():
            # BLAS keeps threads that idle; it looks after itself across a fork, and torch has not started any.
            warnings.simplefilter("ignore", DeprecationWarning)
            with _uncollected():
                process.start()
        theirs.close()
        return _Worker(place, process, ours)

    def _place(self, number: int) -> Place:
        if not self._have_cores:
            return Place(number, None, looks=True)
        core = number % len(self._cores)
        return Place(number, self._cores[core], looks=core > 0)

    @cached_property
    def _have_cores(self) -> bool:
        """Whether rule 8 holds; torch's threads, or those of a GPU's driver, would have to share a core."""
        is_alone = self._premises.spec.plan.threads == 1 and not device_of(self._premises.experiment).startswith("cuda")
        return is_alone and 0 < len(self._cores) <= self._count

    def _serve(self, orders: Sequence[_Order]) -> Iterator[Any]:
        """Show the orders to the workers, who begin; their answers come as they are asked for."""
        if not orders:
            return iter(())
        message = messages.pack_batch(self._board.show(len(orders)), orders)
        for worker in reversed(self._workers[: len(orders)]):  # the first one's core is ours until we wait
            worker.send(message)
        return self._answers(orders, message)

    def _answers(self, orders: Sequence[_Order], message: bytes) -> Iterator[Any]:
        unanswered = {order.site for order in orders}
        self._keep_to(self._cores[:1])
        try:
            yield from self._heard(orders, message, unanswered)
        finally:
            self._keep_to(self._cores)

    def _keep_to(self, cores: Sequence[int]) -> None:
        """Have this thread run on these cores only, if workers have all (rule 8)."""
        if self._have_cores:
            with contextlib.suppress(OSError):  # they may have been taken from this process since
                os.sched_setaffinity(0, cores)

    def _heard(self, orders: Sequence[_Order], message: bytes, unanswered: set[SiteName]) -> Iterator[Any]:
        while unanswered:
            for worker in self._answering(orders, unanswered):
                if worker.looks:  # else it may need the core that looking would take
                    look(worker.pipe)
                try:
                    answers = worker.take()
                except (EOFError, ConnectionError):
                    lost = self._lost(worker, orders, unanswered)
                    fresh = self._replace(worker, lost)
                    answers = [self._again(fresh, order) for order in lost]
                    fresh.send(message)
                unanswered.difference_update(answer.site for answer in answers)
                yield from answers

    def _answering(self, orders: Sequence[_Order], unanswered: set[SiteName]) -> list[_Worker]:
        """Return whom to hear: who has something to say, or, where all orders are taken, who will have, in turn."""
        if self._board.is_empty:
            return [worker for worker in self._workers if self._lost(worker, orders, unanswered)]
        asked = self._workers[: len(orders)]
        ready = wait([worker.pipe for worker in asked])
        return [worker for worker in asked if worker.pipe in ready]

    def _lost(self, worker: _Worker, orders: Sequence[_Order], unanswered: set[SiteName]) -> list[_Order]:
        """Return the orders that a worker took and did not answer."""
        taken = [orders[number] for number in self._board.taken_by(worker.number)]
        return [order for order in taken if order.site in unanswered]

    def _replace(self, worker: _Worker, lost: Sequence[_Order]) -> _Worker:
        """Start a worker instead of one that died (rule 4)."""
        worker.end()
        self._board.mend()
        if worker.is_second:
            raise _died(worker, lost[-1].site if lost else None)
        fresh = self._start(worker.number)
        fresh.wait()
        fresh.is_second = True
        self._workers[worker.number] = fresh
        return fresh

    def _again(self, fresh: _Worker, order: _Order) -> Any:
        """Give an order that was lost again, alone: should this one die too, it is known where."""
        fresh.send(messages.pack_batch(None, [order]))
        try:
            (answer,) = fresh.take()
        except (EOFError, ConnectionError):
            fresh.end()
            raise _died(fresh, order.site) from None
        return answer


def _died(worker: _Worker, site: SiteName | None) -> SimulationError:
    return SimulationError(
        f"a worker died while {f'site {site} worked' if site else 'it had no order'} (exit code "
        f"{worker.process.exitcode}), as did the one before; look for what ends it, such as too little memory, or use "
        "fewer workers"
    )


class _Worker:
    """The parent's end of one worker."""

    def __init__(self, place: Place, process: BaseProcess, pipe: Connection) -> None:
        self.number = place.number
        self.looks = place.looks
        self.process = process
        self.pipe = pipe
        self.is_second = False

    def wait(self) -> None:
        """Wait until it is ready for orders."""
        try:
            problem = self.pipe.recv()
        except (EOFError, ConnectionError):
            problem = "it ended; what it printed says why"
        if problem is not None:
            raise SimulationError(f"worker {self.number} could not load the experiment: {problem}")

    def send(self, message: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it died: the next `take` finds out
            self.pipe.send_bytes(message)

    def take(self) -> list[Any]:
        return messages.unpack_answers(self.pipe.recv_bytes())

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage in a block, nor in a copy of this process that is made in it, until that says so (rule 10)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
