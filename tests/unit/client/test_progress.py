"""Progress: plain lines without a terminal, bars with one, and no text of a peer is obeyed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from federation.client import views
from federation.client.progress import TransferBar, follow, format_metrics, named_or_counted, printable
from federation.v1 import director_pb2 as pb

HOSTILE = "[/red] [bold]x[/bold] \x1b[2J \a"


def events() -> list[views.Event]:
    report = pb.RoundReport(
        round=1,
        seconds=1.25,
        metrics={"accuracy": 0.9},
        is_best=True,
        contributions=[
            pb.Contribution(site="north", outcome="counted"),
            pb.Contribution(site="south", outcome="late"),
        ],
        unevaluated={"south": "still at work since round 1"},
    )
    messages = [
        pb.Event(sequence=1, kind="state", text="running"),
        pb.Event(sequence=2, kind="phase", phase=pb.PhaseChange(round=1, phase="collect", sites_asked=2, sites_done=1)),
        pb.Event(sequence=3, kind="phase", phase=pb.PhaseChange(round=1, phase="select")),
        pb.Event(sequence=4, kind="round", report=report),
        pb.Event(sequence=5, kind="site", site="south", text=HOSTILE),
        pb.Event(sequence=6, kind="audit", text="not shown"),
    ]
    return [views.event_of(message) for message in messages]


def draw(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None, legacy_windows=False)
    follow(events(), rounds=3, console=console)
    return stream.getvalue()


def test_without_a_terminal_each_round_is_one_plain_line() -> None:
    lines = draw(terminal=False).splitlines()
    assert lines[0] == "state running"
    assert lines[1].startswith("round 1/3  1.25 s  1 sites  accuracy 0.9  best  south late, south not evaluated (still")
    assert "\x1b" not in "".join(lines)
    assert len(lines) == 3


def test_text_of_a_peer_is_shown_and_never_obeyed() -> None:
    last = draw(terminal=False).splitlines()[-1]
    assert last == "site south: [/red] [bold]x[/bold] \ufffd[2J \ufffd"


@pytest.mark.parametrize(
    ("kind", "site", "text", "line"),
    [
        ("assignment", "north", "north: accepted", "assignment north: accepted"),
        ("assignment", "north", "north is asked to take part", "assignment north is asked to take part"),
        ("site", "north", "ready", "site north: ready"),
        ("site", "north", "northern lights", "site north: northern lights"),
        ("state", "", "submitted: submitted", "state submitted"),
        ("state", "", "failed: no quorum", "state failed: no quorum"),
    ],
)
def test_nothing_is_said_twice_in_one_line(kind: str, site: str, text: str, line: str) -> None:
    stream = io.StringIO()
    follow(
        [views.event_of(pb.Event(sequence=1, kind=kind, site=site, text=text))], rounds=3, console=Console(file=stream)
    )
    assert stream.getvalue() == line + "\n"


def test_on_a_terminal_bars_show_rounds_and_sites() -> None:
    drawn = draw(terminal=True)
    assert "rounds" in drawn and "1/3" in drawn
    assert "round 1: collect" in drawn or "round 1: select" in drawn


def test_once_it_has_ended_no_bar_waits_for_sites() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None, legacy_windows=False)
    ended = pb.Event(sequence=7, kind="phase", phase=pb.PhaseChange(round=2, phase="ended"))
    follow([*events(), views.event_of(ended)], rounds=3, console=console)
    last = stream.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "1/3" in last and "sites" not in last and "0/?" not in last


def test_metrics_are_in_name_order_with_four_digits() -> None:
    assert format_metrics({"loss": 0.123456, "accuracy": 1.0}) == "accuracy 1  loss 0.1235"
    assert format_metrics({}) == ""


@pytest.mark.parametrize("text", ["plain", "über [0, 1]", "a\nb"])
def test_ordinary_text_stays_readable(text: str) -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(printable(text), highlight=False)
    assert stream.getvalue().strip() == text.replace("\n", " ")


def test_a_transfer_is_drawn_piece_by_piece() -> None:
    stream = io.StringIO()
    with TransferBar(Console(file=stream, force_terminal=True, width=80)) as bar:
        bar("bundle", 10, 100)
        bar("bundle", 100, 100)
        bar("model", 0, 0)
    assert "bundle" in stream.getvalue()


def test_without_a_terminal_a_transfer_is_not_drawn_and_leaves_no_empty_line() -> None:
    stream = io.StringIO()
    with TransferBar(Console(file=stream, width=80)) as bar:
        bar("bundle", 10, 100)
    assert stream.getvalue() == ""


def test_a_table_names_a_few_sites_and_counts_many() -> None:
    assert named_or_counted(("north", "south")) == "north, south"
    assert named_or_counted([f"site-{number}" for number in range(10)]) == "10"
