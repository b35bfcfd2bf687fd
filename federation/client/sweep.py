"""`federation sweep`: every cell of a grid is one child process ``federation simulate``, several at a time.

1. A cell lies in ``OUT/<digest>``; one that has ended well is skipped, one that was stopped goes on where it was. Where
   the experiment's code has changed since one ended, the sweep is refused before it starts any: two states of an
   experiment are not one sweep.
2. A cell that fails does not stop the others; the sweep then ends with its exit code.
3. With tracker mlflow the first cell runs alone: its local database is made by one process.
4. A cell that another command runs now is left to it: a sweep that finds one at its start is refused before it starts
   any, and one that comes to it later counts it as failed, with the exit code of what is refused. A log is locked from
   before its cell starts until the cell has ended, so of two sweeps that start one together the second is refused too.
5. Ctrl-C, or SIGTERM, starts no further cell, lets each running one end its round and keep a checkpoint, and a second
   one ends them. So does a sweep that cannot go on, such as one whose reader has gone: nothing is left running.
6. A sweep that is killed takes its cells with it (on Linux, where the kernel can be asked to): each goes on from its
   last checkpoint when the same command is given again, which says after which round.

Each child is waited for by a thread of its own; nothing is polled. What it prints goes to ``OUT/<digest>.log``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.client.exits import exit_for
from federation.client.runs import code_of, is_finished
from federation.client.saving import writing
from federation.errors import ConflictError
from federation.runtime.exec_stub import under_stub
from federation.simulation.run_folder import checkpointed_round
from federation.storage.disk import try_lock
from federation.storage.ownership import check_free
from federation.tracking import text_for_run
from federation.training.importing import code_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import IO

    from federation.client.grid import Cell

SIMULATE = (sys.executable, "-m", "federation.client.command", "simulate")
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One cell of a sweep that is over.

    Attributes:
        cell: which.
        folder: its run folder.
        code: exit code of its process; 0 for one that was skipped.
        was_skipped: it had ended well before.
        went_on_after: round of an earlier command after which it went on; 0 if it began anew.
        message: last line it printed to standard error, if it failed.
    """

    cell: Cell
    folder: Path
    code: int
    was_skipped: bool = False
    went_on_after: int = 0
    message: str = ""


class Sweep:
    """Runs cells.

    Args:
        experiment: folder of the experiment.
        shared: arguments of ``federation simulate`` that all cells have.
        out: folder of the run folders.
        parallel: processes at a time.
        trackers: ``NAME[:WHERE]`` of each; they see each cell as a run of its own, and do not decide where it lies.
        command: what is run; its arguments follow.
    """

    def __init__(
        self,
        experiment: Path,
        *,
        shared: Sequence[str],
        out: Path,
        parallel: int = 1,
        trackers: Sequence[str] = (),
        command: Sequence[str] = SIMULATE,
    ) -> None:
        self._experiment = experiment
        self._shared = list(shared)
        self._out = out
        self._parallel = parallel
        self._trackers = list(trackers)
        self._command = list(command)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_stopping = False

    def folder_of(self, cell: Cell) -> Path:
        """Return where a cell lies."""
        return self._out / cell.digest(self._experiment.resolve().name, self._shared)

    def run(self, cells: Sequence[Cell], on_finished: Callable[[Finished], None]) -> list[Finished]:
        """Run the cells that have not ended yet; returns all, in grid order.

        Args:
            cells: of the grid.
            on_finished: told of each as it ends, in this thread.

        Raises:
            ConflictError: one of them is being run, or was run with other code; nothing was started.
            StorageError: the folder of the run folders cannot be made.
            KeyboardInterrupt: Ctrl-C; the running cells have kept checkpoints, and the text says how many are left.
        """
        with writing(self._out):
            self._out.mkdir(parents=True, exist_ok=True)
        done: dict[Path, Finished] = {}
        waiting: deque[Cell] = deque()
        code = code_digest(self._experiment)
        for cell in cells:
            folder = self.folder_of(cell)
            if is_finished(folder):
                self._check_code(folder, code)
                done[folder] = Finished(cell=cell, folder=folder, code=0, was_skipped=True)
                on_finished(done[folder])
            else:
                check_free(folder)
                waiting.append(cell)
        with ThreadPoolExecutor(self._parallel, thread_name_prefix="sweep") as pool:
            running: set[Future[Finished]] = set()
            try:
                for cells_at_once in self._in_turn(list(waiting)):
                    running = {pool.submit(self._run_cell, cell) for cell in cells_at_once}
                    while running:
                        ended, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in ended:
                            finished = future.result()
                            done[finished.folder] = finished
                            on_finished(finished)
            except KeyboardInterrupt:
                self._end(signal.SIGINT)
                try:
                    wait(running)
                except KeyboardInterrupt:
                    self._end(signal.SIGTERM)
                left = f"{len(cells) - len(done)} of {len(cells)} runs are left"
                raise KeyboardInterrupt(f"interrupted; {left}: the same command goes on with them") from None
            except BaseException:  # of `on_finished`, perhaps: nobody reads any more what we print
                self._end(signal.SIGINT)
                raise
        return [done[self.folder_of(cell)] for cell in cells]

    def _check_code(self, folder: Path, code: str) -> None:
        """Refuse to take a run of another state of the experiment for one of this sweep."""
        ran = code_of(folder)
        if ran and ran != code:
            raise ConflictError(
                f"{folder} has ended, and the Python files of {self._experiment} have changed since: choose another "
                "--out, or remove what was run with the earlier ones"
            )

    def _in_turn(self, cells: list[Cell]) -> list[list[Cell]]:
        """Return what may run side by side: the first is alone where it makes a database that several cannot make."""
        makes_database = any(text.partition(":")[0] == "mlflow" for text in self._trackers)
        return [cells[:1], cells[1:]] if makes_database else [cells]

    def _run_cell(self, cell: Cell) -> Finished:
        folder = self.folder_of(cell)
        if self._is_stopping:
            return Finished(cell=cell, folder=folder, code=_INTERRUPTED, message="not started")
        log = folder.with_suffix(".log")
        try:
            check_free(folder)
            with log.open("ab") as output:
                _lock(output, log)
                return self._run_logged(cell, folder, log, output)
        except ConflictError as error:
            return Finished(cell=cell, folder=folder, code=exit_for(error), message=f"federation: {error}")

    def _run_logged(self, cell: Cell, folder: Path, log: Path, output: IO[bytes]) -> Finished:
        if is_finished(folder):  # by another sweep, since this one looked
            return Finished(cell=cell, folder=folder, code=0, was_skipped=True)
        output.truncate(0)
        tracked = [word for text in self._trackers for word in ("--tracker", text_for_run(text, folder))]
        arguments = [str(self._experiment), *self._shared, *cell.arguments(), *tracked, "--out", str(folder)]
        went_on_after = checkpointed_round(folder)
        with self._lock:
            if self._is_stopping:
                return Finished(cell=cell, folder=folder, code=_INTERRUPTED, message="not started")
            command = _dying_with_us([*self._command, *arguments])
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches them once, through us: a second one ends a run at once
            )  # fmt: skip
            self._children.add(child)
        code = child.wait()
        with self._lock:
            self._children.discard(child)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if code else []
        message = lines[-1] if lines else ""
        return Finished(cell=cell, folder=folder, code=code, went_on_after=went_on_after, message=message)

    def _end(self, how: signal.Signals) -> None:
        with self._lock:
            self._is_stopping = True
            for child in self._children:
                child.send_signal(how)  # nothing if it has ended and was waited for


def _dying_with_us(command: list[str]) -> list[str]:
    """Return a command that ends when the thread that starts it does: ours waits until it has, or is killed with us."""
    return under_stub(command, limits={}, parent=os.getpid()) if sys.platform == "linux" else command


def _lock(output: IO[bytes], log: Path) -> None:
    """Lock a log for as long as it is open here or at a child that writes to it.

    Raises:
        ConflictError: another sweep has it.
    """
    if not try_lock(output.fileno(), exclusive=True):
        raise ConflictError(f"{log} is being written by another sweep, which runs this cell: wait until it has ended")
