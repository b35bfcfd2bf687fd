"""Which executor a simulation gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from federation.errors import PlanError
from federation.simulation.devices import device_of
from federation.simulation.executors import SerialExecutor

if TYPE_CHECKING:
    from pathlib import Path

    from federation.simulation.bench import Premises
    from federation.simulation.executors import Executor
    from federation.simulation.memory import Layout

ExecutorName: TypeAlias = Literal["serial", "processes", "threads", "ray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Who shall work.

    Attributes:
        workers: how many sites train at once, 1 or more.
        executor: by name; None: serial for one worker; for more, threads on a GPU and else processes.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``, where sites compute; None: as the task says.
        ray_address: of a running Ray cluster, for executor ray; None: one is started for the run.
    """

    workers: int = 1
    executor: ExecutorName | None = None
    device: str | None = None
    ray_address: str | None = None


def launch(premises: Premises, layout: Layout, crew: Crew, *, source: Path | None) -> Executor:
    """Start the workers of a simulation; the caller closes them.

    Args:
        premises: what they start from.
        layout: of the memory they share.
        crew: who shall work; where, the premises say already.
        source: the experiment's folder, if it came from one.

    Raises:
        PlanError: no such executor, or it does not go with so many workers.
        ConfigurationError: it is not available here.
    """
    side_by_side = "threads" if device_of(premises.experiment).startswith("cuda") else "processes"
    workers = crew.workers
    if crew.ray_address is not None and crew.executor != "ray":
        raise PlanError(
            f"a Ray address ({crew.ray_address}) goes with executor ray, not {crew.executor or 'the default'}"
        )
    chosen = crew.executor or ("serial" if workers == 1 else side_by_side)
    if chosen == "serial":
        if workers != 1:
            raise PlanError(f"the serial executor is one worker, {workers} are asked for; leave --executor out")
        return SerialExecutor(premises, layout)
    if chosen == "processes":
        from federation.simulation.processes import ProcessExecutor

        return ProcessExecutor(premises, layout, workers=workers, source=source)
    if chosen == "threads":
        from federation.simulation.threads import ThreadExecutor

        return ThreadExecutor(premises, layout, workers=workers)
    if chosen == "ray":
        from federation.simulation.ray_workers import RayExecutor

        return RayExecutor(premises, layout, workers=workers, source=source, address=crew.ray_address)
    raise PlanError(f"there is no executor {chosen!r}, only serial, processes, threads and ray")
