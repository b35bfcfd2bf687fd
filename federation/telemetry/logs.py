"""Logs as JSON, one object per line, whoever logs.

Every line has ``time`` (ISO 8601, UTC), ``level``, ``logger`` and ``event``; what concerns an experiment, a round or a
site also has ``experiment``, ``round`` and ``site``, bound to the logger that is passed along, never to a global
context. Records of Python's own ``logging``, which libraries and our lower layers use, come out the same way, and ours
go through it: so a process that configures nothing, such as a command, writes only what is wrong, to standard error.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO, cast

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_SHARED: tuple[Processor, ...] = (
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    structlog.processors.format_exc_info,
)


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

    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                ProcessorFormatter.remove_processors_meta,
                add_fixed,
                structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line per scrape of /metrics would drown everything else.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def get_logger(name: str) -> BoundLogger:
    """Return the logger of a module; ``bind(experiment=..., round=..., site=...)`` gives one with these fields."""
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *_SHARED,
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
    )
    return cast("BoundLogger", logger)
