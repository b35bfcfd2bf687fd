"""Workers as Ray actors, on this machine or a cluster: one resident model each, arrays through Ray's object store.

Rules:

1. An actor shares nothing with this process: it is sent the experiment's folder, the data and the spec once
   (`federation.simulation.luggage`), so its machine needs this release of Federation and what the experiment imports,
   and no files.
2. What is broadcast is put into the object store once per asking, and read from there by every actor; updates come back
   the same way, into the block of memory that the engine combines from.
3. What a site keeps stays here. It goes to the actor with an order and comes back with the answer: any actor may serve
   any site, and one that is lost loses nothing.
4. An actor that is lost is started again once, and its orders are given again: they give the same answers. The second
   time the run ends, with the site named.
5. Ray is started for the run and stopped after it, unless an address says where it runs, or this process has started it
   already: then the actors alone are ended. Ray's own usage reports are off unless ``RAY_USAGE_STATS_ENABLED`` says
   otherwise.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from federation.errors import ConfigurationError
from federation.simulation import luggage
from federation.simulation.bench import Bench, EvaluateAnswer, EvaluateOrder, TrainAnswer, TrainOrder
from federation.simulation.devices import device_of
from federation.simulation.executors import SimulationError
from federation.simulation.memory import Arena, Layout
from federation.training.state import StateStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from federation.names import PayloadName, RoundNumber, SiteName
    from federation.simulation.bench import KeepOrder, Premises
    from federation.tensors.buffers import Array

_Order = TypeVar("_Order", TrainOrder, EvaluateOrder)
_AT_HAND = 2
"""Orders an actor holds: the one it works on, and the next."""
READY_S = 120.0
"""Seconds within which all actors must be there: imports on a cold machine take tens of them."""
_END_S = 5.0
_CONNECT_S = 5.0


class RayExecutor:
    """Several actors.

    Args:
        premises: what to work on.
        layout: of the memory.
        workers: how many actors, 1 or more.
        source: the experiment's folder, if it came from one.
        address: of a running cluster, such as ``auto`` or ``ray://host:10001``; None: see rule 5.

    Raises:
        ConfigurationError: Ray is not installed, the cluster is not there, or it has no GPU for a task that needs one.
        PlanError: something the actors need cannot be sent to them.
        SimulationError: they could not load the experiment, or found no room.
    """

    def __init__(
        self, premises: Premises, layout: Layout, *, workers: int, source: Path | None, address: str | None
    ) -> None:
        self.arena = Arena(layout)
        self._stores: dict[SiteName, StateStore] = {}
        self._state = premises.state
        self._version = 0
        self._actors: list[Any] = []
        self._second: set[Any] = set()
        self._ray = _imported()
        threads = premises.spec.plan.threads
        self._is_ours = _connect(self._ray, address, cpus=workers * threads)
        try:
            sent = replace(premises, state=None, is_shared=True)
            dumps = self._ray.cloudpickle.dumps
            self._luggage = self._ray.put(luggage.pack(sent, source, carries_folder=True, dumps=dumps))
            options = {"num_cpus": threads, **_gpus(self._ray, device_of(premises.experiment), workers)}
            self._kind = self._ray.remote(_Worker).options(**options)
            self._actors = [self._kind.remote(self._luggage) for _ in range(workers)]
            self._wait(self._actors)
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
        """See `Executor.foresee`: nothing is prepared."""

    def keep(self, orders: Sequence[KeepOrder]) -> None:
        """See `Executor.keep`."""
        for order in orders:
            self._store(order.site).settle(order.round, order.attempt, counted=order.counted)

    def close(self) -> None:
        """See `Executor.close`."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            ending = [actor.end.remote() for actor in self._actors]
            if ending:
                self._ray.wait(ending, num_returns=len(ending), timeout=_END_S)
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        if self._is_ours:
            self._ray.shutdown()

    def _wait(self, actors: Sequence[Any]) -> None:
        ready = [actor.problem.remote() for actor in actors]
        done, late = self._ray.wait(ready, num_returns=len(ready), timeout=READY_S)
        if late:
            raise SimulationError(
                f"{len(late)} of {len(ready)} workers are not there after {READY_S:.0f} s: the cluster has "
                f"{self._ray.cluster_resources().get('CPU', 0):.0f} CPUs in all; use fewer workers, or make room"
            )
        try:
            problems = [problem for problem in self._ray.get(done) if problem]
        except self._ray.exceptions.RayError as error:
            problems = [str(error)]
        if problems:
            raise SimulationError(f"a worker could not load the experiment: {problems[0]}")

    def _serve(self, orders: Sequence[_Order]) -> Iterator[Any]:
        waiting = deque(orders)
        models: dict[int, tuple[int, Any]] = {}
        busy: dict[Any, tuple[Any, _Order]] = {}

        def give(actor: Any, order: _Order) -> None:
            if order.generation not in models:
                models[order.generation] = self._broadcast(order.generation)
            carried = self._store(order.site).carried()
            busy[actor.serve.remote(order, *models[order.generation], carried)] = (actor, order)

        for _ in range(_AT_HAND):
            for actor in self._actors:
                if waiting:
                    give(actor, waiting.popleft())
        while busy:
            (done,), _ = self._ray.wait(list(busy), num_returns=1)
            actor, order = busy[done]
            try:
                answer, payloads, pending = self._ray.get(done)
            except self._ray.exceptions.RayActorError as error:
                lost = [(ref, each) for ref, (whose, each) in busy.items() if whose == actor]
                fresh = self._replace(actor, lost[0][1].site, error)
                for ref, each in lost:
                    del busy[ref]
                    give(fresh, each)
                continue
            del busy[done]
            if waiting:
                give(actor, waiting.popleft())
            if isinstance(order, TrainOrder):
                self._take(order, payloads, pending)
            yield answer

    def _broadcast(self, generation: int) -> tuple[int, Any]:
        self._version += 1
        return self._version, self._ray.put(np.frombuffer(self.arena.generation(generation), np.uint8))

    def _take(self, order: TrainOrder, payloads: dict[PayloadName, Array], pending: Any) -> None:
        for name, data in payloads.items():
            self.arena.update(order.slot, name)[: data.nbytes] = data.data
        store = self._store(order.site)
        store.drop_pending()
        if pending is not None:
            (number, attempt), state = pending
            store.set_pending(number, attempt, state)

    def _store(self, site: SiteName) -> StateStore:
        found = self._stores.get(site)
        if found is None:
            folder = None if self._state is None else self._state / site
            found = self._stores[site] = StateStore(folder, durable=False)
        return found

    def _replace(self, actor: Any, site: SiteName, error: Exception) -> Any:
        """Rule 4."""
        if actor in self._second:
            raise SimulationError(
                f"a worker was lost while site {site} worked, as was the one before ({str(error).splitlines()[0]}); "
                "look for what ends it, such as too little memory"
            )
        place = self._actors.index(actor)
        self._actors[place] = fresh = self._kind.remote(self._luggage)
        self._second.add(fresh)
        self._wait([fresh])
        return fresh


class _Worker:
    """What an actor is made of."""

    def __init__(self, packed: luggage.Luggage) -> None:
        self._problem = ""
        self._held: dict[int, int] = {}
        self._stores: dict[SiteName, StateStore] = {}
        self._stack = contextlib.ExitStack()
        try:
            premises = luggage.unpack(packed, self._stack)
            self._arena = Arena(Layout(premises.spec, 1))
            self._bench = Bench(premises, self._arena, self._stores)
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"

    def problem(self) -> str:
        """Return why it cannot work; empty: it can."""
        return self._problem

    def serve(self, order: TrainOrder | EvaluateOrder, version: int, model: Array, store: StateStore) -> Any:
        """Return the answer to an order, each payload of the update, and what the site is to keep if it counts."""
        if self._held.get(order.generation) != version:
            self._arena.generation(order.generation)[:] = model.data
            self._held[order.generation] = version
        self._stores[order.site] = store
        try:
            if isinstance(order, EvaluateOrder):
                return self._bench.evaluate(order), {}, None
            answer = self._bench.train(order._replace(slot=0))
            sizes = {} if answer.trained is None else answer.trained.payload_bytes
            payloads = {
                name: np.frombuffer(self._arena.update(0, name)[:size], np.uint8).copy() for name, size in sizes.items()
            }
            return answer, payloads, store.pending
        finally:
            del self._stores[order.site]

    def end(self) -> None:
        """Remove what it unpacked."""
        self._stack.close()


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError("executor ray needs Ray: pip install 'federation[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None, *, cpus: int) -> bool:
    """Connect to Ray (rule 5); returns whether it is ours to stop."""
    if ray.is_initialized():
        return False
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(where)
    # A local one has the room that is asked for: its CPUs are counted, not reserved.
    room = {"num_cpus": cpus, "include_dashboard": False} if where == "local" else {}
    try:
        ray.init(address=where, logging_level="ERROR", **room)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"Ray cannot be reached at {where!r}: {error}; start it there, or leave --ray-address out"
        ) from error
    return True


def _check_reachable(where: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for minutes."""
    host, _, port = where.removeprefix("ray://").partition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ConfigurationError(
            f"Ray cannot be reached at {where!r}: {error}; start it there, or leave --ray-address out"
        ) from error


def _gpus(ray: Any, device: str, workers: int) -> dict[str, float]:
    if not device.startswith("cuda"):
        return {}
    there = ray.cluster_resources().get("GPU", 0.0)
    if not there or ":" in device:
        raise ConfigurationError(
            f"device {device!r} with executor ray: Ray hands out GPUs itself and has {there:.0f} here; give cuda, "
            "and a cluster with GPUs"
        )
    return {"num_gpus": min(1.0, there / workers)}
