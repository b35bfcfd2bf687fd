"""How aggregators are started: a local subprocess by default; another `Launcher` where users outgrow a machine.

Rules, in order:

1. A launcher starts a process, finds it again after a restart of the director, and says when it ends. Which experiment,
   which epoch and what to do after a crash is decided by `director.overseer`.
2. An aggregator gets a folder of its own, its own certificate for each start, and an environment of a few named
   variables: nothing of the director's secrets.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from director.logs import AGGREGATOR_LOG
from federation.runtime import children
from federation.runtime.records import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation.names import Epoch, ExperimentId

CONFIGURATION = "aggregator.json"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """What to start: the aggregator of `experiment` under `epoch`, in `folder`."""

    experiment: ExperimentId
    epoch: Epoch
    folder: Path


class Ending(Protocol):
    """How an aggregator ended; its text is for people."""

    @property
    def is_disk_full(self) -> bool:
        """Whether it ended for want of room, which starting it again does not mend by itself."""
        ...


class AggregatorProcess(Protocol):
    """A started aggregator, wherever it runs."""

    async def wait(self) -> Ending:
        """Return how it ended, once it has."""

    def kill(self) -> None:
        """End it at once."""

    async def stop(self, grace_s: float) -> Ending:
        """Ask it to end, and end it after `grace_s` seconds; return how it ended."""

    def release(self) -> None:
        """Leave it running for a later director to find."""


class Launcher(Protocol):
    """Starts aggregators."""

    async def launch(self, order: LaunchOrder) -> AggregatorProcess:
        """Start one.

        Raises:
            FederationError: it cannot be started.
        """

    def adopt(self, folder: Path) -> AggregatorProcess | None:
        """Return the one that an earlier director started in `folder`, if it still runs."""


class SubprocessLauncher:
    """Starts aggregators as child processes of the director.

    Args:
        configure: makes what one aggregator is told, as its configuration file; certificates included.
        limits: what one may use of this machine.
    """

    def __init__(self, configure: Callable[[LaunchOrder], bytes], limits: children.Limits) -> None:
        self._configure = configure
        self._limits = limits

    async def launch(self, order: LaunchOrder) -> AggregatorProcess:
        """Start one; see `Launcher`."""
        order.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = order.folder / CONFIGURATION
        write_atomically(path, self._configure(order))
        # -P: the working folder holds data, and nothing in it may be imported.
        argv = [sys.executable, "-P", "-m", "federation.aggregator", "--config", str(path)]
        spec = children.ChildSpec(
            name=f"aggregator of {order.experiment}",
            argv=argv,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            cwd=order.folder,
            log=order.folder / AGGREGATOR_LOG,
            folder=order.folder,
            limits=self._limits,
        )
        return await children.spawn(spec)

    def adopt(self, folder: Path) -> AggregatorProcess | None:
        """Find one again; see `Launcher`."""
        return children.adopt(folder)
