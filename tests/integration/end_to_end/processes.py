"""Eyes on processes that are not our children: who they are, and that they have ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

PATIENCE_S = 60.0


def processes_of(folder: Path) -> list[int]:
    """Return every process whose arguments or environment name the folder, zombies not counted."""
    mark, found = str(folder).encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


class Eyes:
    """Processes that are waited for by pidfd."""

    def __init__(self, pids: list[int]) -> None:
        self._pidfds = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                self._pidfds[pid] = os.pidfd_open(pid)

    def wait(self) -> None:
        """Wait until all have ended."""
        for pid, pidfd in self._pidfds.items():
            ready, _, _ = select.select([pidfd], [], [], PATIENCE_S)
            os.close(pidfd)
            assert ready, f"process {pid} still runs: " + Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        self._pidfds = {}


def kill(*pids: int) -> None:
    """Kill for good, and wait until they are gone."""
    eyes = Eyes(list(pids))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eyes.wait()
