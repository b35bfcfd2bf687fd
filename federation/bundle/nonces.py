"""Which signatures a silo has accepted: each nonce once, for one experiment, remembered through crashes.

A line is appended and fsynced before the nonce counts as accepted. The same nonce for the same experiment is accepted
again, because an envoy that crashed between two of its steps must be able to take them again. Nonces of bundles that
have expired are forgotten when the ledger is opened: expiry refuses those by itself.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from federation.errors import BundleError, StorageError
from federation.names import ExperimentId
from federation.runtime.records import write_atomically
from federation.storage.disk import translated

if TYPE_CHECKING:
    from pathlib import Path


class NonceLedger:
    """A file of accepted nonces. One process owns it."""

    def __init__(self, path: Path, *, now: float) -> None:
        """Open or make the ledger.

        Args:
            path: its file; the folder exists.
            now: Unix time, seconds; what expired before it is dropped.

        Raises:
            StorageError: the file cannot be read or written.
        """
        self._path = path
        self._accepted: dict[str, tuple[ExperimentId, float]] = {}
        try:
            text = path.read_text("ascii", errors="replace") if path.exists() else ""
            self._read(text, now)
            write_atomically(path, "".join(map(self._line, self._accepted)).encode("ascii"))
        except OSError as error:
            raise StorageError(f"cannot open the nonce ledger {path}: {error}") from error

    def __contains__(self, nonce: str) -> bool:
        return nonce in self._accepted

    def accept(self, nonce: str, *, experiment: ExperimentId, not_after: float) -> None:
        """Remember a nonce durably, once.

        Args:
            nonce: the manifest's.
            experiment: experiment it is accepted for.
            not_after: the manifest's expiry, Unix time in seconds.

        Raises:
            BundleError: it was accepted before, for another experiment: a replay.
            StorageError: it could not be written; the nonce is not accepted.
        """
        held = self._accepted.get(nonce)
        if held is not None:
            if held[0] == experiment:
                return
            raise BundleError(
                f"the bundle's signature was used before, by experiment {held[0]!r}; submit it again to sign it afresh"
            )
        self._accepted[nonce] = (experiment, not_after)
        try:
            self._append(self._line(nonce))
        except StorageError:
            del self._accepted[nonce]
            raise

    def _line(self, nonce: str) -> str:
        experiment, not_after = self._accepted[nonce]
        return f"{nonce} {experiment} {not_after!r}\n"

    def _append(self, line: str) -> None:
        with translated(self._path, len(line)):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    if os.write(descriptor, line.encode("ascii")) != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, size)  # else the next line would be glued to half of this one
                    raise
            finally:
                os.close(descriptor)

    def _read(self, text: str, now: float) -> None:
        # A last line without its newline was torn by a crash: its nonce never counted as accepted.
        for line in text.splitlines(keepends=True):
            fields = line.split()
            if not line.endswith("\n"):
                continue
            try:
                not_after = float(fields[2])
            except (ValueError, IndexError) as error:
                raise StorageError(f"the nonce ledger {self._path} has a line that makes no sense: {line!r}") from error
            if not_after >= now:
                self._accepted[fields[0]] = (ExperimentId(fields[1]), not_after)
