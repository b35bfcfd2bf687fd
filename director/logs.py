"""Log lines users may read: an experiment's aggregator's, and those its sites' policies release.

Rules, in order:

1. An aggregator writes to a file, not to a pipe of ours (architecture §2). Nobody watches that file: whoever follows it
   reads on when there is news of the experiment, because an aggregator that does something reports it, and once more
   when its process has ended. So a line may be as late as the next event, and none is lost.
2. Released lines are appended to one file per site, bounded in number of bytes; what is beyond is dropped, and the file
   says so once.
3. Only whole lines are handed out, except at the end.
4. Lines come with a cursor, the number of bytes up to their end: a reader that was cut begins there, and misses and
   repeats nothing. A log that is shorter than a cursor is not what was read, and is refused.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import ConflictError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

AGGREGATOR_LOG = "aggregator.log"
_SITES = "sites"
KEPT_FILES = frozenset({AGGREGATOR_LOG, _SITES})
"""What stays in an experiment's folder once it is over."""
_BLOCK_BYTES = 256 * 1024
_MAX_LINE = 4096
_LINES_PER_BATCH = 500
_FULL = "(the director keeps no more lines of this site)"


class LogFolder:
    """The log files under the director's work folder.

    Args:
        work: folder with one folder per experiment; names of experiments and sites are valid names.
        bytes_per_site: released lines kept per experiment and site, bytes.
    """

    def __init__(self, work: Path, bytes_per_site: int) -> None:
        self._work = work
        self._bytes_per_site = bytes_per_site

    def path(self, experiment: str, site: str) -> Path:
        """Return the file: the aggregator's if `site` is empty, else the lines this site released."""
        folder = self._work / experiment
        return folder / _SITES / f"{site}.log" if site else folder / AGGREGATOR_LOG

    async def append(self, experiment: str, site: str, lines: Sequence[str]) -> None:
        """Keep lines a site released.

        Raises:
            StorageError: they cannot be written.
        """
        await asyncio.to_thread(self._append, self.path(experiment, site), lines)

    def _append(self, path: Path, lines: Sequence[str]) -> None:
        text = "".join(_one_line(line) + "\n" for line in lines).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = path.stat().st_size if path.exists() else 0
            if held >= self._bytes_per_site:
                return
            if held + len(text) > self._bytes_per_site:
                whole = text[: self._bytes_per_site - held].rfind(b"\n") + 1
                # Padded to the bound, so that the file's size alone says that it is full.
                notice = _FULL.encode().ljust(max(0, self._bytes_per_site - held - whole - 1)) + b"\n"
                text = text[:whole] + notice
            with path.open("ab") as file:
                file.write(text)
        except OSError as error:
            raise StorageError(f"released log lines cannot be written to {path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some lines, and the place in the log after them, bytes."""

    lines: list[str]
    cursor: int


class LogReader:
    """Reads one log file on from where it stopped.

    Args:
        path: the file, which may not exist yet.
        cursor: where to begin: 0, or the cursor of a batch of this file.
    """

    def __init__(self, path: Path, *, cursor: int = 0) -> None:
        self._path = path
        self._cursor = cursor  # what was handed out ends here
        self._rest = b""  # read, and not handed out

    async def read(self, *, to_end: bool) -> AsyncIterator[Batch]:
        """Yield the lines written since the last call, in batches.

        Args:
            to_end: also yield what follows the last newline, because nothing more will be written.

        Raises:
            ConflictError: the file is shorter than what was read of it.
            StorageError: the file cannot be read.
        """
        while block := await asyncio.to_thread(self._block):
            *whole, self._rest = (self._rest + block).split(b"\n")
            for start in range(0, len(whole), _LINES_PER_BATCH):
                lines = whole[start : start + _LINES_PER_BATCH]
                self._cursor += sum(map(len, lines)) + len(lines)
                yield Batch(lines=[_shown(line) for line in lines], cursor=self._cursor)
            if len(self._rest) > _BLOCK_BYTES:
                yield self._all_of_the_rest()
        if to_end and self._rest:
            yield self._all_of_the_rest()

    def _all_of_the_rest(self) -> Batch:
        rest, self._rest = self._rest, b""
        self._cursor += len(rest)
        return Batch(lines=[_shown(rest)], cursor=self._cursor)

    def _block(self) -> bytes:
        at = self._cursor + len(self._rest)
        try:
            with self._path.open("rb") as file:
                self._check(at, os.fstat(file.fileno()).st_size)
                file.seek(at)
                return file.read(_BLOCK_BYTES)
        except FileNotFoundError:
            self._check(at, 0)
            return b""
        except OSError as error:
            raise StorageError(f"log {self._path.name} cannot be read: {error.strerror}") from error

    def _check(self, at: int, size: int) -> None:
        if at > size:
            raise ConflictError(
                f"log {self._path.name} has {size} bytes, and {at} were read: it was cut at the director; "
                "read it from its start"
            )


def _one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")[:_MAX_LINE]


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")[:_MAX_LINE]
