"""The report page: complete, self-contained, and safe whatever its texts say."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from federation.client import views
from federation.client.report import render_report, write_report
from federation.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from federation.v1 import director_pb2 as pb

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects what a browser would see; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def details(reply: pb.GetExperimentReply) -> views.ExperimentDetails:
    return views.details_of(reply)


def test_who_has_no_part_in_an_evaluation_is_in_the_table_of_rounds(details: views.ExperimentDetails) -> None:
    silent = {"south": "still at work since round 1", "west": "no answer in time"}
    rounds = tuple(replace(entry, unevaluated=silent if entry.round == 1 else {}) for entry in details.rounds)
    text = Page(render_report(replace(details, rounds=rounds))).text
    assert "not evaluated" in text and "south: still at work since round 1; west: no answer in time" in text
    silenced = tuple(replace(entry, unevaluated={}) for entry in details.rounds)
    assert "not evaluated" not in Page(render_report(replace(details, rounds=silenced))).text


def test_hostile_texts_are_shown_and_never_run(details: views.ExperimentDetails) -> None:
    page = Page(render_report(details))
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert '<script>alert("x")</script>' in "".join(page.text)


def test_page_asks_nothing_of_a_network(details: views.ExperimentDetails) -> None:
    text = render_report(details)
    page = Page(text)
    assert not {"link", "script", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    assert re.search(r"https?:|url\(|@import", text) is None


def test_page_says_state_sites_plan_and_digests(details: views.ExperimentDetails) -> None:
    text = " ".join(Page(render_report(details)).text)
    for expected in ("completed", "degraded", "alice", "north", "south", "west", "refused", "failed"):
        assert expected in text
    for digest in ("01" * 32, "ef" * 32, "sha256:" + "23" * 32, "cd" * 6):
        assert digest in text
    assert '"rounds": 2' in text


def test_contributions_say_how_old_an_update_was_where_it_was(details: views.ExperimentDetails) -> None:
    text = Page(render_report(details)).text
    assert "1.00, 2 old" in text and "0.50" in text


def test_shares_are_the_rules_and_not_by_examples_where_it_is_not_the_mean(details: views.ExperimentDetails) -> None:
    robust = replace(details, plan={**details.plan, "rule": "median"})
    text = Page(render_report(robust)).text
    assert "✓, 2 old" in text and "1.00, 2 old" not in text
    entries = tuple(
        replace(entry, scores={"rule_weight": 3.0 if entry.site == "north" else 1.0})
        for entry in details.rounds[0].contributions
    )
    weighed = replace(robust, rounds=(replace(details.rounds[0], contributions=entries),))
    assert f"{3 / (len(entries) + 2):.2f}" in Page(render_report(weighed)).text


def test_a_site_in_quarantine_is_said_at_the_top_and_why_beside_its_name(details: views.ExperimentDetails) -> None:
    held = replace(details.sites[0], quarantined_since=2, quarantine_reason="far <from> the others")
    text = Page(render_report(replace(details, sites=(held, *details.sites[1:])))).text
    assert any(line.endswith(f"; in quarantine: {held.site}") for line in text)
    assert f"{held.answer}, in quarantine since round 2" in text and "far <from> the others" in text


def test_a_site_has_one_colour_in_all_curves(details: views.ExperimentDetails) -> None:
    entries = tuple(replace(entry, scores={"distance": 1.0}) for entry in details.rounds[0].contributions)
    page = render_report(replace(details, rounds=(replace(details.rounds[0], contributions=entries),)))
    colours = re.findall(r'<i style="background:(#\w+)"></i>north<', page)
    assert len(colours) >= 3 and len(set(colours)) == 1


def test_curves_are_drawn_for_each_metric_and_site(details: views.ExperimentDetails) -> None:
    page = Page(render_report(details))
    titles = {value for name, value in page.attributes if name == "aria-label"}
    assert {"evaluation: loss", "evaluation: accuracy", "training: loss", "seconds per round"} <= titles
    assert page.tags.count("polyline") >= 3 * 3


def test_phases_are_in_the_order_a_round_takes(details: views.ExperimentDetails) -> None:
    text = render_report(details)
    heads = re.findall(r"<th>(select|collect|commit)</th>", text)
    assert heads == ["select", "collect", "commit"]


def test_one_round_is_enough_for_a_page(details: views.ExperimentDetails) -> None:
    page = Page(render_report(replace(details, rounds=details.rounds[:1])))
    assert "circle" in page.tags


def test_no_round_gives_a_page_that_says_so(details: views.ExperimentDetails) -> None:
    page = Page(render_report(replace(details, rounds=(), artifacts=(), sites=())))
    assert "No round was committed." in page.text
    assert "Curves" not in page.text and "Time and bytes" not in page.text
    assert "svg" not in page.tags


def test_rounds_without_any_metric_still_have_times_and_norms(details: views.ExperimentDetails) -> None:
    bare = tuple(
        replace(
            report,
            metrics={},
            train_metrics={},
            contributions=tuple(replace(entry, metrics={}, train_metrics={}) for entry in report.contributions),
        )
        for report in details.rounds
    )
    titles = {value for name, value in Page(render_report(replace(details, rounds=bare))).attributes}
    assert "seconds per round" in titles and "evaluation: loss" not in titles


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_a_metric_that_diverged_does_not_break_the_page(details: views.ExperimentDetails, value: float) -> None:
    rounds = tuple(replace(report, metrics={"loss": value}, update_norm=value) for report in details.rounds)
    page = render_report(replace(details, rounds=rounds))
    Page(page)
    assert "</html>" in page


def test_a_time_no_calendar_has_does_not_break_the_page(details: views.ExperimentDetails) -> None:
    rounds = (replace(details.rounds[0], started_at=1e300),)
    page = render_report(replace(details, rounds=rounds))
    Page(page)
    assert "</html>" in page


def test_report_is_written_where_it_was_asked_for(details: views.ExperimentDetails, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    write_report(details, target)
    assert target.read_text(encoding="utf-8") == render_report(details)


def test_report_into_a_folder_is_named_after_its_experiment(details: views.ExperimentDetails, tmp_path: Path) -> None:
    path = write_report(details, tmp_path)
    assert path == tmp_path / f"{details.summary.experiment}.html" and path.stat().st_size > 0


def test_a_report_that_cannot_be_written_says_where(details: views.ExperimentDetails, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*/file/report\.html: "):
        write_report(details, tmp_path / "file" / "report.html")
