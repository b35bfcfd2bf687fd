"""A run as one CSV file: a row per round, a column per number. Always there, needs nothing.

Columns are those of the first round; what a later round measures for the first time gets a column by writing the file
anew. A column that a round has no number for is empty.
"""

from __future__ import annotations

import csv
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.errors import ConfigurationError, StorageError
from federation.tracking.tracker import scalars_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from federation.rounds.history import RoundRecord


class CsvTracker:
    """Writes ``path``; what stood there of an earlier run is replaced.

    Args:
        path: the file, or a folder to write ``rounds.csv`` into.
    """

    def __init__(self, path: str = "") -> None:
        target = Path(path or "rounds.csv")
        self._path = target if target.suffix else target / "rounds.csv"
        self._columns: list[str] = []
        self._rows: list[dict[str, float]] = []

    def start(self, run: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        self._columns, self._rows = ["round"], []
        with self._translated(ConfigurationError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write()

    def round(self, record: RoundRecord) -> None:
        """See `Tracker.round`."""
        row = {"round": record.round, **scalars_of(record)}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        with self._translated(StorageError):
            if new:
                self._write()
            else:
                with self._path.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self._columns).writerow(row)

    def end(self, outcome: str) -> None:
        """See `Tracker.end`."""
        with self._translated(StorageError), self._path.open("rb+") as file:
            os.fsync(file.fileno())

    def _write(self) -> None:
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)

    @contextmanager
    def _translated(self, kind: type[ConfigurationError | StorageError]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise kind(f"tracker csv cannot write {self._path}: {error.strerror}") from error
