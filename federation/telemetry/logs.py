"""Logs as JSON, one object per line, whoever logs.

Every line has ``time`` (ISO 8601, UTC), ``level``, ``logger`` and ``event``; what concerns an experiment, a round or a
site also has ``experiment``, ``round`` and ``site``, bound to the logger that is passed along, never to a global
context. Records of Python's own ``logging``, which libraries and our lower layers use, come out the same way, and ours
go through it: so a process that configures nothing, such as a command, writes only what is wrong, to standard error.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Said:
    """What one call of a `Logger` said: the message of its record.

    Attributes:
        event: the sentence.
        fields: what it is about.
    """

    event: str
    fields: Mapping[str, object]

    def __str__(self) -> str:
        """For whoever writes records as text, such as a process that configured nothing."""
        return " ".join([self.event, *(f"{name}={value!r}" for name, value in self.fields.items())])


class Logger:
    """A module's logger with fields bound to it; get one from `get_logger`.

    Args:
        logger: where records go.
        fields: those of every line.
    """

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object]) -> None:
        self._logger, self._fields = logger, fields

    def bind(self, **fields: object) -> Logger:
        """Return a logger whose lines also have `fields`."""
        return Logger(self._logger, {**self._fields, **fields})

    def log(self, level: int, event: str, *arguments: object, exc_info: Any = None, **fields: object) -> None:
        """Write a line, if `level` is severe enough.

        Args:
            level: of `logging`.
            event: the sentence, with ``%`` where `arguments` go.
            arguments: what goes there.
            exc_info: an exception whose traceback is to be told, or True for the one being handled.
            fields: of this line.
        """
        if self._logger.isEnabledFor(level):
            said = Said(event % arguments if arguments else event, {**self._fields, **fields})
            self._logger.log(level, said, exc_info=exc_info)

    def debug(self, event: str, *arguments: object, **fields: Any) -> None:
        """`log` what only whoever searches for a fault wants to know."""
        self.log(logging.DEBUG, event, *arguments, **fields)

    def info(self, event: str, *arguments: object, **fields: Any) -> None:
        """`log` what happened."""
        self.log(logging.INFO, event, *arguments, **fields)

    def warning(self, event: str, *arguments: object, **fields: Any) -> None:
        """`log` what a person may have to look at."""
        self.log(logging.WARNING, event, *arguments, **fields)

    def error(self, event: str, *arguments: object, **fields: Any) -> None:
        """`log` what failed."""
        self.log(logging.ERROR, event, *arguments, **fields)

    def exception(self, event: str, *arguments: object, **fields: Any) -> None:
        """`log` what failed, with the traceback of the exception being handled."""
        self.log(logging.ERROR, event, *arguments, exc_info=True, **fields)


class _JsonLines(logging.Formatter):
    """Args: fixed: fields of every line."""

    def __init__(self, fixed: Mapping[str, object]) -> None:
        super().__init__()
        self._fixed = fixed

    def format(self, record: logging.LogRecord) -> str:
        said = record.msg if isinstance(record.msg, Said) else Said(record.getMessage(), {})
        line = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": said.event,
            **self._fixed,
            **said.fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str = "INFO", stream: TextIO | None = None, **fixed: str) -> None:
    """Send everything this process logs to `stream` as JSON lines; call it once, where the process is assembled.

    Args:
        level: least severe level that is written; one of `LEVELS`.
        stream: where lines go; standard error if None.
        fixed: fields of every line, such as ``role="director"``.

    Raises:
        ValueError: there is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LEVELS)}, got {level!r}")
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_JsonLines(fixed))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line per scrape of /metrics would drown everything else.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def get_logger(name: str) -> Logger:
    """Return the logger of a module; ``bind(experiment=..., round=..., site=...)`` gives one with these fields."""
    return Logger(logging.getLogger(name), {})


def tail(text: str, limit: int = 2000) -> str:
    """Return the end of `text`, at most `limit` characters: foreign text in a log line is capped."""
    return text if len(text) <= limit else "…" + text[-limit:]
