"""What is written down about a process: who it is, and how it ended.

A child writes its own exit record, because the parent that started it may be gone by then, and a later parent learns no
exit code of a process that is not its child.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal as signals
from dataclasses import asdict, dataclass
from pathlib import Path

from federation.errors import DiskFullError, FederationError, StorageError
from federation.runtime.room import refusal

IDENTITY_FILE = "process.json"
EXIT_FILE = "exit.json"
_DEAD_STATES = ("Z", "X", "x")
_DISK_FULL, _STORAGE = DiskFullError.__name__, StorageError.__name__
_FULL_BYTES = 1 << 20
"""Fewer free bytes than these are none: a log line and a record want some, and who failed for want of more gave some
back as it ended."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a small file so that a reader, or a crash, sees all of it or the old one.

    Args:
        path: where; its folder exists.
        data: whole content.
        mode: permissions of the new file.

    Raises:
        DiskFullError: there is no room.
        StorageError: the disk refused.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise refusal(error, path, "could not be written", needed_bytes=len(data)) from error


def _sync_folder(folder: Path) -> None:
    # A rename is only durable once its folder is; Windows cannot open one, and needs no such call.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the third on, or None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may itself hold blanks and parentheses.
    return text.rpartition(")")[2].split()


def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process, and no other that is given its number later.

    Attributes:
        pid: process number.
        start_ticks: when it started, clock ticks since boot.
        boot_id: the kernel's random id of this boot.
    """

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Return the identity of a process that exists.

        Raises:
            ProcessLookupError: it does not.
        """
        fields = _stat_fields(pid)
        if fields is None:
            raise ProcessLookupError(f"there is no process {pid}")
        return cls(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id())

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        fields = _stat_fields(self.pid)
        return (
            fields is not None
            and fields[0] not in _DEAD_STATES
            and int(fields[19]) == self.start_ticks
            and self.boot_id == boot_id()
        )

    def to_json(self) -> str:
        """Return it as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ProcessIdentity:
        """Read it back.

        Raises:
            ValueError: it is not an identity.
        """
        try:
            value = json.loads(text)
            return cls(pid=int(value["pid"]), start_ticks=int(value["start_ticks"]), boot_id=str(value["boot_id"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a process identity: {text[:100]!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How a process says it ended.

    Attributes:
        outcome: one word of the process's own, such as ``"completed"``, ``"failed"`` or ``"drained"``.
        error_class: class name of what it died of; empty if nothing.
        reason: text for people.
        at: when, Unix seconds.
    """

    outcome: str
    error_class: str = ""
    reason: str = ""
    at: float


def write_exit_record(folder: Path, record: ExitRecord) -> None:
    """Leave the record where a parent, the present one or a later one, finds it.

    Raises:
        StorageError: the disk refused.
    """
    write_atomically(folder / EXIT_FILE, json.dumps(asdict(record)).encode())


def read_exit_record(folder: Path) -> ExitRecord | None:
    """Return what the process that had this folder wrote, or None if it wrote nothing that can be read."""
    try:
        value = json.loads((folder / EXIT_FILE).read_text())
        return ExitRecord(
            outcome=str(value["outcome"]),
            error_class=str(value["error_class"]),
            reason=str(value["reason"]),
            at=float(value["at"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def full_disk_of(folder: Path, record: ExitRecord | None) -> Path | None:
    """Return the folder if its disk has no room and that may be why a process ended with this record, or with none."""
    if record is not None and record.error_class not in (_DISK_FULL, _STORAGE):
        return None
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):  # it is gone; or this is Windows, which starts no children
        return None
    return folder if status.f_bavail * status.f_frsize < _FULL_BYTES else None


def is_for_want_of_room(error: FederationError, folder: Path) -> bool:
    """Tell whether something failed for want of room under `folder`: so it says, or its disk has none."""
    return isinstance(error, DiskFullError) or (
        isinstance(error, StorageError) and full_disk_of(folder, None) is not None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a child ended.

    Attributes:
        code: exit code; None if a signal ended it, or if it was adopted and nobody could tell us.
        signal: number of the signal that ended it, or None.
        record: what it wrote itself, or None.
        full_disk: the folder for its record, if its disk has no room and it left none or one of storage; else None.
    """

    code: int | None
    signal: int | None
    record: ExitRecord | None
    full_disk: Path | None = None

    @property
    def is_disk_full(self) -> bool:
        """Whether it ended for want of room, which starting it again does not mend by itself."""
        return self.full_disk is not None or (self.record is not None and self.record.error_class == _DISK_FULL)

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                how = f"ended by {signals.Signals(self.signal).name}"
            except ValueError:
                how = f"ended by signal {self.signal}"
        else:
            how = "exit code unknown" if self.code is None else f"exit code {self.code}"
        if self.record is None:
            full = f" (it could not write why: {self.full_disk} is on a full disk)" if self.full_disk else ""
            return how + full
        said = ": ".join(part for part in (self.record.outcome, self.record.error_class, self.record.reason) if part)
        return f"{how} ({said})"
