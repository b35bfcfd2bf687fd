"""Every line is one JSON object, whoever logged it."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from federation.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield io.StringIO()
    root.handlers[:], root.level = before


def _read(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_event_and_what_was_bound(lines: io.StringIO) -> None:
    logs.configure("INFO", lines, role="aggregator")
    logger = logs.get_logger("federation.aggregator.driver").bind(experiment="digits-abcdefgh", round=3)
    logger.info("update admitted", site="clinic-a")
    (line,) = _read(lines)
    assert line.pop("time").endswith("Z")
    assert line == {
        "role": "aggregator",
        "level": "info",
        "logger": "federation.aggregator.driver",
        "event": "update admitted",
        "experiment": "digits-abcdefgh",
        "round": 3,
        "site": "clinic-a",
    }


def test_pythons_own_logging_comes_out_the_same_way(lines: io.StringIO) -> None:
    logs.configure("INFO", lines, role="envoy")
    logging.getLogger("federation.runtime").warning("lost %s", "the director")
    (line,) = _read(lines)
    assert (line["event"], line["level"], line["logger"], line["role"]) == (
        "lost the director",
        "warning",
        "federation.runtime",
        "envoy",
    )


def test_an_exception_stays_on_one_line(lines: io.StringIO) -> None:
    logs.configure("INFO", lines)
    try:
        raise LookupError("line one\nline two")
    except LookupError:
        logs.get_logger("x").exception("failed")
    (line,) = _read(lines)
    assert "LookupError: line one\nline two" in line["exception"]


def test_what_is_less_severe_than_the_level_is_not_written(lines: io.StringIO) -> None:
    logs.configure("WARNING", lines)
    logs.get_logger("x").info("quiet")
    logging.getLogger("y").info("quiet")
    assert _read(lines) == []


def test_configuring_again_replaces_and_does_not_double(lines: io.StringIO) -> None:
    logs.configure("INFO", io.StringIO())
    logs.configure("INFO", lines)
    logs.get_logger("x").info("once")
    assert len(_read(lines)) == 1


def test_an_unconfigured_process_writes_nothing_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    # A command's --json output must stay what it is.
    logs.get_logger("x").warning("unheard of")
    assert capsys.readouterr().out == ""


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="DEBUG, INFO, WARNING, ERROR"):
        logs.configure("chatty")
