"""A site's own update, kept until its round is committed: sent again byte for byte, never trained again.

The files stay where the trainer wrote them; the record beside them says which they are and what they must hold. It is
one line behind its CRC-32, written over the last one in place: making, renaming and removing a file each round would
cost ten times as much. A record that is torn or wrong counts as none, and the site trains again.

Nothing is fsynced. What a process wrote outlives the process, not the machine: after a power loss `Retention.verify`
finds out by the digests. Where one is not known yet, the update is believed until the machine is started anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.errors import StorageError
from federation.names import Attempt, Digest, RoundNumber
from federation.storage.checked_lines import checked, text_of
from federation.storage.disk import pread_into, translated, write_over
from federation.tensors.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

_RECORD = "retained"
_NOTHING = b"-\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetainedFile:
    """One payload: its name, its file, its size in bytes, its digest; None if it was not computed yet."""

    payload: str
    path: Path
    nbytes: int
    digest: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetainedUpdate:
    """A finished update.

    Attributes:
        round: its round.
        attempt: its attempt.
        header: its announcement, as bytes.
        files: its payloads in the order announced.
    """

    round: RoundNumber
    attempt: Attempt
    header: bytes
    files: tuple[RetainedFile, ...]

    @property
    def is_digested(self) -> bool:
        """Whether the digest of each payload is known."""
        return all(file.digest is not None for file in self.files)


class Retention:
    """Holds at most one update, the latest.

    Args:
        folder: where the record lies; made if missing.
        boot: id of this start of the machine.

    Raises:
        StorageError: the folder cannot be used.
    """

    def __init__(self, folder: Path, *, boot: str) -> None:
        self._path = folder / _RECORD
        self._boot = boot
        self._held: RetainedUpdate | None = None
        with translated(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, update: RetainedUpdate) -> None:
        """Remember an update in place of any earlier one.

        Raises:
            StorageError: the disk refused; perhaps none is remembered any more.
        """
        record = {
            "round": update.round,
            "attempt": update.attempt,
            "header": update.header.hex(),
            "boot": self._boot,
            "files": [
                {
                    "payload": file.payload,
                    "path": str(file.path),
                    "bytes": file.nbytes,
                    "digest": (file.digest or b"").hex(),
                }
                for file in update.files
            ],
        }
        text = json.dumps(record).encode()
        write_over(self._path, checked(text) + b"\n")
        self._held = update

    def current(self) -> RetainedUpdate | None:
        """Return the update that is remembered, if its files are there and may be what they were; else forget it."""
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            record = _read_line(self._path.read_bytes())
            update = RetainedUpdate(
                round=RoundNumber(int(record["round"])),
                attempt=Attempt(int(record["attempt"])),
                header=bytes.fromhex(record["header"]),
                files=tuple(
                    RetainedFile(
                        payload=row["payload"],
                        path=Path(row["path"]),
                        nbytes=int(row["bytes"]),
                        digest=Digest(bytes.fromhex(row["digest"])) if row["digest"] else None,
                    )
                    for row in record["files"]
                ),
            )
            is_known = update.is_digested or record["boot"] == self._boot
            if is_known and all(_may_hold(file) for file in update.files):
                self._held = update
                return update
        self._held = None
        if self._path.exists():
            write_over(self._path, _NOTHING)
        return None

    def verify(self, update: RetainedUpdate) -> bool:
        """Tell whether files still hold what was digested: one pass over each that was, so after a restart only.

        Raises:
            StorageError: the disk failed.
        """
        return all(file.digest is None or file_digest(file) == file.digest for file in update.files)

    def release(self, round_number: RoundNumber) -> None:
        """Forget the update of this round or an earlier one: its round is committed or given up.

        Raises:
            StorageError: the disk failed.
        """
        update = self._held or self.current()
        if update is not None and update.round <= round_number:
            write_over(self._path, _NOTHING)
            self._held = None


def _read_line(content: bytes) -> dict[str, Any]:
    line, end, _ = content.partition(b"\n")
    text = text_of(line)
    if not end or text is None:
        raise ValueError("no whole record")
    record: dict[str, Any] = json.loads(text)
    return record


def _may_hold(file: RetainedFile) -> bool:
    found = file.path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size >= file.nbytes


def file_digest(file: RetainedFile, is_over: Callable[[], bool] = lambda: False) -> Digest:
    """Return the digest of what a payload's file holds now, in one pass.

    The trainer can write where it lies: no link is followed, no pipe waited for.

    Args:
        file: the payload.
        is_over: asked between any two pieces; once it is, reading ends.

    Raises:
        StorageError: the disk failed, something else than a file lies there, or it was over before.
    """
    with translated(file.path):
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    def read(offset: int, view: memoryview) -> None:
        if is_over():
            raise StorageError(f"{file.path}: not digested to the end")
        pread_into(descriptor, view, offset, file.path)

    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StorageError(f"{file.path}: expected a regular file")
        return digest_of(file.nbytes, read)
    finally:
        os.close(descriptor)
