"""Workers as threads: one resident model each, and on a GPU one CUDA stream each.

Threads are for a task that computes on a GPU, where each keeps the device busy while the others prepare, or whose
operations are large: Python itself runs in one thread at a time, so small ones gain nothing. Rules:

1. Each worker has an experiment, a model and a bench of its own; the task is copied. Shards are shared and only read.
   What a site keeps is held once, as one worker at a time serves a site.
2. Generators that are global to the process must not decide a result. Workers begin without streams of their own. If a
   global generator moved while orders were served, somebody drew from it: the answers are thrown away, and the same
   orders are given again with streams of their own for each thread (`federation.training.streams`), from then on.
   Repeating an order gives the same answer, so a task that draws gets the bits that it gets in a process of its own.
3. Drawing from Python's or NumPy's global generators cannot be given to threads; it is refused, and nothing is lost but
   the round: what was committed stays.
4. On CUDA a worker's operations go to a stream of its own, and its answer is given once the stream is through.
"""

from __future__ import annotations

import copy
import queue
import random
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from federation.errors import ConfigurationError, PlanError
from federation.simulation.bench import Bench, TrainOrder
from federation.simulation.devices import device_of
from federation.simulation.executors import restore_torch, torch_settings
from federation.simulation.memory import Arena
from federation.training.seeding import Idle, thread_streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from federation.names import RoundNumber, SiteName
    from federation.simulation.bench import (
        EvaluateAnswer,
        EvaluateOrder,
        KeepOrder,
        Premises,
        TrainAnswer,
    )
    from federation.simulation.memory import Layout
    from federation.training.experiment import Experiment
    from federation.training.seeding import Streams
    from federation.training.state import StateStore

_Order = TypeVar("_Order", "TrainOrder", "EvaluateOrder")


class ThreadExecutor:
    """Several worker threads in this process.

    torch's settings (threads, deterministic algorithms) are the plan's meanwhile, and as they were after `close`.

    Args:
        premises: what to work on.
        layout: of the memory.
        workers: how many threads, 1 or more.

    Raises:
        PlanError: the experiment does not make the model of the spec, or one for each thread.
    """

    def __init__(self, premises: Premises, layout: Layout, *, workers: int) -> None:
        self.arena = Arena(layout)
        self._torch = torch_settings()
        self._device = device_of(premises.experiment)
        self._stores: dict[SiteName, StateStore] = {}
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._stack = ExitStack()
        self._are_isolated = False
        try:
            made = [self._worker(premises, number) for number in range(workers)]
            _check_apart([worker.bench for worker in made])
            if "torch" in sys.modules:
                from federation.training.streams import guarded

                self._stack.enter_context(guarded())
            threads = premises.spec.plan.threads
            self._pool = self._stack.enter_context(ThreadPoolExecutor(workers, "worker", _set_threads, (threads,)))
        except BaseException:
            self.close()
            raise
        self._workers = made
        for worker in made:
            self._idle.put(worker)

    def train(self, orders: Sequence[TrainOrder]) -> Iterator[TrainAnswer]:
        """See `Executor.train`.

        Raises:
            ConfigurationError: the task draws from a global generator as no thread can (rule 3).
        """
        yield from self._serve(orders)

    def evaluate(self, orders: Sequence[EvaluateOrder]) -> Iterator[EvaluateAnswer]:
        """See `Executor.evaluate`.

        Raises:
            ConfigurationError: the task draws from a global generator as no thread can (rule 3).
        """
        return iter(self._serve(orders))

    def foresee(self, sites: Sequence[SiteName], number: RoundNumber) -> None:
        """See `Executor.foresee`: nothing is prepared."""

    def keep(self, orders: Sequence[KeepOrder]) -> None:
        """See `Executor.keep`."""
        for order in orders:
            self._workers[0].bench.keep(order)

    def close(self) -> None:
        """See `Executor.close`."""
        self._stack.close()
        restore_torch(self._torch)

    def _worker(self, premises: Premises, number: int) -> _Worker:
        own = premises if number == 0 else replace(premises, experiment=_copied(premises.experiment))
        return _Worker(Bench(own, self.arena, self._stores), self._device)

    def _serve(self, orders: Sequence[_Order]) -> list[Any]:
        before = _globals(self._device)
        answers = self._answers(orders)
        moved = _moved(before, _globals(self._device))
        if "torch" in moved and not self._are_isolated:
            from federation.training.streams import OwnStreams

            self._are_isolated = True
            for worker in self._workers:
                worker.streams = OwnStreams(self._device)
            return self._serve(orders)
        if moved:
            raise ConfigurationError(
                f"the task draws from, or seeds, {' and '.join(moved)}'s global generator, which threads share: draw "
                "from round.rng(...), or use --executor processes"
            )
        return answers

    def _answers(self, orders: Sequence[_Order]) -> list[Any]:
        futures = [self._pool.submit(self._answer, order) for order in orders]
        try:
            return [future.result() for future in as_completed(futures)]
        finally:
            for future in futures:
                future.cancel()

    def _answer(self, order: TrainOrder | EvaluateOrder) -> Any:
        worker = self._idle.get()
        try:
            return worker.answer(order)
        finally:
            self._idle.put(worker)


class _Worker:
    """A bench, with where it computes and draws."""

    def __init__(self, bench: Bench, device: str) -> None:
        self.bench = bench
        self.streams: Streams = Idle()
        self._cuda: Any = None
        if device.startswith("cuda"):
            import torch

            self._cuda = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's stub
            # What the author's code put on the device until now lies there when this stream begins.
            self._cuda.wait_stream(torch.cuda.current_stream(device))

    def answer(self, order: TrainOrder | EvaluateOrder) -> TrainAnswer | EvaluateAnswer:
        """Serve one order, in the calling thread.

        Raises:
            ConfigurationError: the task did what no thread can.
        """
        with thread_streams(self.streams), self._drawn(), self._on_stream():
            answer = self.bench.train(order) if isinstance(order, TrainOrder) else self.bench.evaluate(order)
            if self._cuda is not None:
                self._cuda.synchronize()
        if self.streams.refused:
            raise ConfigurationError(self.streams.refused)
        return answer

    def _drawn(self) -> AbstractContextManager[object]:
        drawn_from = getattr(self.streams, "drawn_from", None)
        return nullcontext() if drawn_from is None else drawn_from()

    def _on_stream(self) -> AbstractContextManager[object]:
        if self._cuda is None:
            return nullcontext()
        import torch

        return torch.cuda.stream(self._cuda)


def _copied(experiment: Experiment) -> Experiment:
    own = copy.copy(experiment)
    try:
        own.task = copy.deepcopy(experiment.task)
    except Exception as error:  # whatever the author's classes raise
        raise PlanError(
            f"task {type(experiment.task).__name__} cannot be copied for a thread ({error}): use --executor processes"
        ) from error
    return own


def _check_apart(benches: Sequence[Bench]) -> None:
    """Refuse an experiment whose calls of `model` give the same memory twice: threads would write into each other's."""
    seen: set[int] = set()
    for bench in benches:
        places = bench.written()
        if seen & places:
            raise PlanError(
                "the experiment's model() gives the same tensors at each call, so threads cannot have a model each: "
                "make a new one in it, or use --executor processes"
            )
        seen |= places


def _set_threads(threads: int) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)  # of this thread: the library keeps it for each


def _globals(device: str) -> dict[str, Any]:
    """Return where the global generators are."""
    numpy = np.random.get_state()
    found: dict[str, Any] = {
        "Python": random.getstate(),
        "NumPy": (numpy[1].tobytes(), *numpy[2:]),  # type: ignore[index]  # the legacy form
    }
    if "torch" in sys.modules:
        from federation.training.streams import global_generators

        found["torch"] = [bytes(generator.get_state().numpy()) for generator in global_generators(device)]
    return found


def _moved(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return whose generators moved; torch's, too, if it was loaded just now, as nobody knows where they were."""
    return [name for name, place in after.items() if before.get(name) != place]
