"""Logs as JSON, one object per line, whoever logs.

Every line has ``time`` (ISO 8601, UTC), ``level``, ``logger`` and ``event``; what concerns an experiment, a round or a
site also has ``experiment``, ``round`` and ``site``, bound to the logger that is passed along, never to a global
context. Records of Python's own ``logging``, which libraries and our lower layers use, come out the same way, and ours
go through it: so a process that configures nothing, such as a command, writes only what is wrong, to standard error.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class JsonLines(logging.Formatter):
    """Makes one JSON object of a record, whoever logged it.

    Args:
        fixed: fields of every line.
    """

    def __init__(self, fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self._fixed = dict(fixed)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            **self._fixed,
            **getattr(record, "fields", {}),
            "event": record.getMessage(),
            "logger": record.name,
            "level": record.levelname.lower(),
            "time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Logger:
    """A logger that writes fields beside the event; `bind` returns one that writes some with every event.

    ``%`` in an event is for `arguments`, as in Python's own ``logging``.
    """

    _python: logging.Logger
    _bound: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, **fields: Any) -> Logger:
        """Return a logger that writes these fields too."""
        return Logger(self._python, {**self._bound, **fields})

    def log(self, level: int, event: str, *arguments: object, **fields: Any) -> None:
        """Log at a level of Python's ``logging``, for whoever decides how bad it is only then."""
        self._say(level, event, arguments, fields)

    def debug(self, event: str, *arguments: object, **fields: Any) -> None:
        """Log what only somebody who looks for a fault wants to read."""
        self._say(logging.DEBUG, event, arguments, fields)

    def info(self, event: str, *arguments: object, **fields: Any) -> None:
        """Log what is as it should be."""
        self._say(logging.INFO, event, arguments, fields)

    def warning(self, event: str, *arguments: object, **fields: Any) -> None:
        """Log what somebody should look at."""
        self._say(logging.WARNING, event, arguments, fields)

    def error(self, event: str, *arguments: object, exc_info: BaseException | None = None, **fields: Any) -> None:
        """Log what somebody has to mend."""
        self._say(logging.ERROR, event, arguments, fields, exc_info)

    def exception(self, event: str, *arguments: object, **fields: Any) -> None:
        """Log an error with the exception that is being handled."""
        self._say(logging.ERROR, event, arguments, fields, sys.exception())

    def _say(
        self,
        level: int,
        event: str,
        arguments: tuple[object, ...],
        fields: Mapping[str, Any],
        error: BaseException | None = None,
    ) -> None:
        if self._python.isEnabledFor(level):
            extra = {"fields": {**self._bound, **fields}}
            self._python.log(level, event, *arguments, exc_info=error, extra=extra, stacklevel=3)


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
    handler.setFormatter(JsonLines(fixed))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line per scrape of /metrics would drown everything else.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def get_logger(name: str) -> Logger:
    """Return the logger of a module; ``bind(experiment=..., round=..., site=...)`` gives one with these fields."""
    return Logger(logging.getLogger(name))


def tail(text: str, limit: int = 2000) -> str:
    """Return the end of `text`, at most `limit` characters: foreign text in a log line is capped."""
    return text if len(text) <= limit else "…" + text[-limit:]
