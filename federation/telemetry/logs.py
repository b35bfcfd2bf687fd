"""Logs as JSON, one object per line, whoever logs.

Every line has ``time`` (ISO 8601, UTC), ``level``, ``logger`` and ``event``; what concerns an experiment, a round or a
site also has ``experiment``, ``round`` and ``site``, bound to the logger that is passed along, never to a global
context. Records of Python's own ``logging``, which libraries and our lower layers use, come out the same way.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


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

    def add_fixed(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {**fixed, **event}

    shared: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        add_fixed,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # A test, or a process that is configured twice, must not go on with the first configuration.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line per scrape of /metrics would drown everything else.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of a module; ``bind(experiment=..., round=..., site=...)`` gives one with these fields."""
    return cast("FilteringBoundLogger", structlog.stdlib.get_logger(name))


def tail(text: str, limit: int = 2000) -> str:
    """Return the end of `text`, at most `limit` characters: foreign text in a log line is capped."""
    return text if len(text) <= limit else "…" + text[-limit:]
