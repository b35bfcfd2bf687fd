"""The journal: the truth about rounds. One line per event, durable before anybody acts on it.

Rules, in order:

1. One owner: the file is locked while open. A second opener is told who holds it.
2. A line is ``<CRC-32 of the rest, 8 hex digits> <canonical JSON>``; sequences count from 1 without a gap.
3. `append` returns once the line is on the disk. If that fails nothing was appended; after a failed fsync, when nobody
   can know, the journal takes no more lines until it is opened again.
4. On opening, a last line that is torn is cut: nobody was told of it. A wrong line before the last is damage, and
   refused.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from federation.errors import StorageError
from federation.storage.checked_lines import checked, text_of
from federation.storage.disk import pwrite_all, sync_folder, translated
from federation.storage.lock_files import take_lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One event: its `sequence` from 1, its `kind`, its `body` as a JSON object."""

    sequence: int
    kind: str
    body: dict[str, Any]


class Journal:
    """An open journal. Use `Journal.open`; not for two threads at once."""

    def __init__(self, path: Path, descriptor: int, lock: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._lock = lock
        self._end = 0
        self._last = 0
        self._is_broken = False

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open, lock and check a journal; it is made if missing.

        Raises:
            StorageError: another process holds it (the text says which), it is damaged, or the disk failed.
        """
        lock = take_lock(path.with_name(path.name + ".lock"))  # the journal itself may be cut and copied
        try:
            with translated(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except BaseException:
            os.close(lock)
            raise
        journal = cls(path, descriptor, lock)
        try:
            for entry, end in journal._read():
                journal._last, journal._end = entry.sequence, end
            with translated(path):
                if os.fstat(descriptor).st_size > journal._end:
                    os.ftruncate(descriptor, journal._end)
                os.fsync(descriptor)
            sync_folder(path.parent)
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def last_sequence(self) -> int:
        """Sequence of the last line; 0 if there is none."""
        return self._last

    def append(self, kind: str, body: Mapping[str, Any]) -> int:
        """Write one line durably and return its sequence.

        Args:
            kind: what happened.
            body: JSON object with finite numbers only.

        Raises:
            ValueError: the body is no such object.
            DiskFullError: there is no room; the journal is as before.
            StorageError: the disk failed; the journal is as before, or takes no more lines until it is opened again.
        """
        if self._is_broken:
            raise StorageError(f"{self.path} takes no more lines after a failed write; open it again")
        line = _encode(JournalEntry(sequence=self._last + 1, kind=kind, body=dict(body)))
        self._is_broken = True
        try:
            pwrite_all(self._descriptor, line, self._end, self.path)
        except StorageError:
            with translated(self.path):
                os.ftruncate(self._descriptor, self._end)
            self._is_broken = False
            raise
        with translated(self.path):
            os.fsync(self._descriptor)
        self._is_broken = False
        self._end += len(line)
        self._last += 1
        return self._last

    def entries(self, *, after: int = 0) -> Iterator[JournalEntry]:
        """Read the lines again, in order.

        Args:
            after: only those with a higher sequence.

        Raises:
            StorageError: the file was damaged since it was opened.
        """
        for entry, _ in self._read():
            if entry.sequence > after:
                yield entry

    def close(self) -> None:
        """Give the file and its lock up."""
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> Iterator[tuple[JournalEntry, int]]:
        """Yield each line with the offset of its end; stop before a torn last one."""
        end, expected = 0, 1
        with translated(self.path), open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while line := file.readline(MAX_LINE_BYTES + 1):
                end += len(line)
                try:
                    entry = _decode(line)
                except ValueError as error:
                    if end == size:
                        return
                    raise StorageError(
                        f"{self.path} is damaged at line {expected}: {error}; restore it from a backup, or move it "
                        "away and run the experiment again"
                    ) from error
                if entry.sequence != expected:
                    raise StorageError(
                        f"{self.path} has sequence {entry.sequence} at line {expected}: lines are missing"
                    )
                yield entry, end
                expected += 1


def _encode(entry: JournalEntry) -> bytes:
    document = {"sequence": entry.sequence, "kind": entry.kind, "body": entry.body}
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except TypeError as error:
        raise ValueError(f"body is not JSON: {error}") from error
    if len(text) > MAX_LINE_BYTES - 16:
        raise ValueError(f"line of {len(text)} bytes is longer than {MAX_LINE_BYTES - 16}")
    return checked(text) + b"\n"


def _decode(line: bytes) -> JournalEntry:
    if not line.endswith(b"\n") or line[8:9] != b" ":
        raise ValueError("it is not whole")
    text = text_of(line[:-1])
    if text is None:
        raise ValueError("its checksum is wrong")
    document = json.loads(text)
    return JournalEntry(sequence=document["sequence"], kind=document["kind"], body=document["body"])
