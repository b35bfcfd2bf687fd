"""Which executor a simulation gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from federation.errors import ConfigurationError, PlanError
from federation.simulation.executors import SerialExecutor

if TYPE_CHECKING:
    from pathlib import Path

    from federation.simulation.bench import Premises
    from federation.simulation.executors import Executor
    from federation.simulation.memory import Layout

ExecutorName: TypeAlias = Literal["serial", "processes", "threads", "ray"]


def launch(
    premises: Premises, layout: Layout, *, workers: int, name: ExecutorName | None, source: Path | None
) -> Executor:
    """Start the workers of a simulation; the caller closes them.

    Args:
        premises: what they start from.
        layout: of the memory they share.
        workers: how many.
        name: of the executor; None: serial for one worker, else processes.
        source: the experiment's folder, if it came from one.

    Raises:
        PlanError: no such executor, or it does not go with so many workers.
        ConfigurationError: it is not available here.
    """
    chosen = name or ("serial" if workers == 1 else "processes")
    if chosen == "serial":
        if workers != 1:
            raise PlanError(f"the serial executor is one worker, {workers} are asked for; leave --executor out")
        return SerialExecutor(premises, layout)
    if chosen == "processes":
        from federation.simulation.processes import ProcessExecutor

        return ProcessExecutor(premises, layout, workers=workers, source=source)
    if chosen in ("threads", "ray"):
        raise ConfigurationError(
            f"executor {chosen!r} is not in this release: threads need a CUDA device, for a stream of its own each, "
            "and ray a cluster; use processes"
        )
    raise PlanError(f"there is no executor {name!r}, only serial and processes")
