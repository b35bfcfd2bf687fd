"""Child processes that a long-lived daemon starts, watches, stops, and finds again after its own restart.

Rules:

1. Each child leads its own session, reads nothing, and logs to a file, so neither the parent's terminal nor a full
   pipe nor the parent's death can harm it.
2. Limits are set by a small program that then becomes the child (`exec_stub`), never by ``preexec_fn``: gRPC and fork
   do not mix. ``subprocess.Popen`` without ``preexec_fn`` uses vfork and exec in C, where no Python and no handler of
   ``pthread_atfork``, gRPC's among them, runs.
3. A child is known by pid, start time and boot id (`records.ProcessIdentity`), so a recycled pid is never mistaken.
4. Its end is an event of a pidfd, ours or adopted; nothing is polled. Our own are reaped, whoever waits.
5. When a child ends, what it left in its process group is killed.
6. An adopted child is not ours to reap: its exit code is unknown, and its own exit record says how it ended. Where
   there is none because there was no room for one, the status says that.

Linux only; importable everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError
from federation.runtime.exec_stub import under_stub
from federation.runtime.records import (
    EXIT_FILE,
    IDENTITY_FILE,
    ExitRecord,
    ExitStatus,
    ProcessIdentity,
    full_disk_of,
    read_exit_record,
    write_atomically,
    write_exit_record,
)
from federation.runtime.room import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Child",
    "ChildSpec",
    "ExitRecord",
    "ExitStatus",
    "Limits",
    "ProcessIdentity",
    "adopt",
    "read_exit_record",
    "spawn",
    "write_exit_record",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child may use; None leaves it as the parent has it. Core files are always off.

    Attributes:
        memory_bytes: private writable memory (RLIMIT_DATA), bytes.
        open_files: open file descriptors.
        cpu_s: processor time, seconds; then SIGXCPU and SIGKILL.
        processes: processes of this user in all; not enforced for root.
    """

    memory_bytes: int | None = None
    open_files: int | None = None
    cpu_s: int | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """A child to start.

    Attributes:
        name: for logs.
        argv: program and arguments; the program is looked for on PATH of `env`.
        env: the whole environment; nothing of the parent's is added.
        cwd: working folder.
        log: file that stdout and stderr are appended to.
        folder: where identity and exit record lie; made if missing. One child per folder at a time.
        limits: what it may use.
        pass_fds: open file descriptors it inherits, under the same numbers.
        dies_with_parent: SIGKILL it when the thread that spawned it ends; for children that are nothing without us.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    folder: Path
    limits: Limits = field(default_factory=Limits)
    pass_fds: Sequence[int] = ()
    dies_with_parent: bool = False


class Child:
    """A running or ended child; made by `spawn` and `adopt` only.

    Attributes:
        identity: which process it is.
        folder: where identity and exit record lie.
    """

    def __init__(self, identity: ProcessIdentity, folder: Path, process: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self.folder = folder
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        # Between fork and here pid is either running or a zombie of ours, so it cannot have been given to another. An
        # adopted one is checked after opening: see adopt().
        self._pidfd: int | None = os.pidfd_open(identity.pid)
        self._loop.add_reader(self._pidfd, self._on_end)

    @property
    def is_running(self) -> bool:
        """False once its end was noticed."""
        return not self._ended.done()

    async def wait(self) -> ExitStatus:
        """Return how it ended, once it has; any number may wait, and giving up waiting changes nothing."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Ask its process group to end (SIGTERM); nothing if it has ended."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """End its process group at once (SIGKILL); nothing if it has ended."""
        self._signal_group(signal.SIGKILL)

    async def stop(self, grace_s: float) -> ExitStatus:
        """SIGTERM, and SIGKILL for its whole session if it has not ended after `grace_s` seconds.

        If the caller is cancelled meanwhile the child is killed before the cancellation goes on.
        """
        self.terminate()
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            await self._kill_session()
            return await self.wait()
        except asyncio.CancelledError:
            self.kill()
            raise

    def release(self) -> None:
        """Stop watching and leave it running, for a later parent to adopt; `wait` then never returns."""
        self._unwatch()
        if self._process is not None:
            # Popen would otherwise warn, and poll the pid behind our back, when it is collected.
            self._process.returncode = 0

    def _signal_group(self, number: int) -> None:
        if self.is_running and self._pidfd is not None:
            # Until its end is noticed one of ours is at worst a zombie, so the group's number is still its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.identity.pid, number)

    async def _kill_session(self) -> None:
        members = await asyncio.to_thread(_session_members, self.identity.pid)
        if self.is_running:
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.kill()

    def _on_end(self) -> None:
        code: int | None = None
        number: int | None = None
        if self._process is not None:
            # Before reaping, while the number cannot belong to anyone else.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.identity.pid, signal.SIGKILL)
            returned = self._process.wait()  # does not block: the pidfd says it has ended
            code, number = (returned, None) if returned >= 0 else (None, -returned)
        self._unwatch()
        record = read_exit_record(self.folder)
        full_disk = full_disk_of(self.folder, record)
        self._ended.set_result(ExitStatus(code=code, signal=number, record=record, full_disk=full_disk))

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


def _session_members(session: int) -> list[int]:
    """Pids of the session's processes: a child's own children may have made groups of their own."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[3]) == session:
                    members.append(int(entry.name))
    return members


async def spawn(spec: ChildSpec) -> Child:
    """Start a child and write down who it is.

    Runs in the caller's thread, not in a worker: `dies_with_parent` follows the thread that forked.

    Raises:
        ConfigurationError: the program does not exist, or this is not Linux.
        StorageError: log, identity or folder cannot be written.
    """
    if not hasattr(os, "pidfd_open"):
        raise ConfigurationError("child processes need Linux 5.4 or later: there is no pidfd_open here")
    program = shutil.which(spec.argv[0], path=spec.env.get("PATH"))
    if program is None:
        raise ConfigurationError(f"program {spec.argv[0]!r} of {spec.name} does not exist or is not executable")
    argv, parent = [program, *spec.argv[1:]], os.getpid() if spec.dies_with_parent else None
    process = _start(spec, under_stub(argv, limits=asdict(spec.limits), parent=parent))
    try:
        identity = ProcessIdentity.of(process.pid)
        write_atomically(spec.folder / IDENTITY_FILE, identity.to_json().encode())
        return Child(identity, spec.folder, process)
    except BaseException:
        # A child that nobody could find again must not run.
        process.kill()
        process.wait()
        raise


def _start(spec: ChildSpec, argv: list[str]) -> subprocess.Popen[bytes]:
    try:
        spec.folder.mkdir(parents=True, exist_ok=True)
        (spec.folder / EXIT_FILE).unlink(missing_ok=True)  # an earlier child's
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise refusal(error, spec.log, f"or folder {spec.folder} of child {spec.name} cannot be written") from error
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=spec.cwd,
            env=dict(spec.env),
            close_fds=True,
            pass_fds=tuple(spec.pass_fds),
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigurationError(f"child {spec.name} cannot be started in {spec.cwd}: {error}") from error
    finally:
        os.close(log)


def adopt(folder: Path) -> Child | None:
    """Return the child that an earlier parent started in `folder` if that very process still runs, else None."""
    try:
        identity = ProcessIdentity.from_json((folder / IDENTITY_FILE).read_text())
    except (OSError, ValueError):
        return None
    if not identity.is_alive():
        return None
    try:
        child = Child(identity, folder, None)
    except ProcessLookupError:
        return None
    if not identity.is_alive():
        # It ended between the check and pidfd_open, which may have opened its successor in that number.
        child.release()
        return None
    return child
