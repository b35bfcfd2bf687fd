"""The report on trust: whom the rule down-weighted, whom it refused, who was held, each with the reason at hand."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

import pytest

from federation.client.suspicion import trust_section
from federation.client.views import ExperimentDetails, ExperimentSummary, round_of
from federation.v1 import director_pb2 as pb

HOSTILE = "site-x"
SITES = ("site-a", "site-b", "site-c", HOSTILE)


def report(number: int, *, held: bool = False, refused: bool = False, weights: bool = True) -> pb.RoundReport:
    rows = []
    for site in SITES:
        is_hostile = site == HOSTILE
        if is_hostile and held:
            continue
        if is_hostile and refused:
            rows.append(pb.Contribution(site=site, outcome="refused", reason="norm: the change is <far> too long"))
            continue
        scores = {"distance": 40.0 if is_hostile else 2.0, "cosine": -0.9 if is_hostile else 0.8}
        if weights:
            scores["rule_weight"] = 0.0 if is_hostile else 1 / 3
        rows.append(pb.Contribution(site=site, outcome="counted", update_norm=1.5, scores=scores))
    quarantined = [pb.QuarantinedSite(site=HOSTILE, since_round=3, reason="krum above 3 times")] if number >= 3 else []
    return pb.RoundReport(round=number, contributions=rows, quarantined=quarantined, rule_note="kept 3 of 4")


def details(*reports: pb.RoundReport, **plan: Any) -> ExperimentDetails:
    summary = ExperimentSummary(
        experiment="e-1",
        name="e",
        project="default",
        submitted_by="alice",
        state="completed",
        reason="",
        degraded=False,
        rounds_done=len(reports),
        rounds_planned=len(reports),
        submitted_at=0.0,
        changed_at=0.0,
        sites=SITES,
    )
    return ExperimentDetails(
        summary=summary,
        plan={"rule": "multi_krum", "byzantine": 1, **plan},
        sites=(),
        rounds=tuple(map(round_of, reports)),
        artifacts=(),
        transitions=(),
        manifest_digest="",
        signing_fingerprint="",
        aggregator="",
    )


def test_it_shows_whom_the_rule_down_weighted_and_by_what_scores():
    page = trust_section(details(report(1), report(2)))
    assert "Rule <code>multi_krum</code>, hostile sites to be stood: 1. In the last round: kept 3 of 4." in page
    row = page[page.index("<td>site-x</td>") :]
    cell = row[: row.index("</tr>")]
    assert "norm 1.5, distance 40 (20 times the median), cosine -0.9" in cell and ">0.00" in cell
    assert "rgb(224,134,64)" in cell, "as orange as a cell may be"
    assert page.count(">1.33<") == 3 * 2 + 3, "each round of each honest site, and its median"


def test_a_rule_without_weights_and_the_mean_are_told_by_distance():
    for page in (
        trust_section(details(report(1, weights=False), rule="median")),
        trust_section(details(report(1), rule="mean")),
    ):
        assert "The rule gives no weights by trust" in page
        assert '">20</td>' in page and '">1.00</td>' in page


def test_refusals_are_counted_by_reason_and_the_last_is_quoted_safely():
    page = trust_section(details(report(1), report(2, refused=True), report(3, refused=True)))
    assert "round 3: the change is &lt;far&gt; too long" in page and "<far>" not in page
    assert "<td>norm</td><td>site-x</td><td>2</td>" in page


def test_quarantine_has_a_time_line_with_the_reason():
    page = trust_section(details(report(1), report(2), report(3), report(4, held=True)))
    assert 'title="krum above 3 times">in</td>' in page and 'title="in quarantine: not asked">held</td>' in page
    assert "<td>site-x</td><td>3</td><td>the end</td><td>0</td>" in page


def test_a_round_drawn_before_a_release_shows_the_site_as_held_and_the_spell_ends_in_it():
    reports = [report(number, held=number in (4, 5)) for number in range(1, 7)]
    for after in reports[4:]:
        del after.quarantined[:]
    page = trust_section(details(*reports))
    assert page.count(">held</td>") == 2, "round 5 was drawn while it was held"
    assert ">out</td>" in page and "a release in round 5" in page


def test_it_says_when_the_plan_quarantines_and_weighs_nobody_where_the_rule_does_not():
    policy = {"score": "distance", "threshold": 2.0, "rounds": 3}
    page = trust_section(details(report(1, weights=False), rule="median", quarantine=policy))
    assert "quarantine after 3 rounds in a row of distance above 2.0 times the round's median." in html.unescape(page)
    assert "rule's weight" not in page
    assert "of cosine below 0.1" in trust_section(
        details(report(1), quarantine={**policy, "score": "cosine", "threshold": 0.1})
    )
    assert "rule's weight" not in trust_section(details(report(1), rule="mean"))


@pytest.mark.parametrize("rounds", [(), (pb.RoundReport(round=1),)], ids=["no round", "no scores"])
def test_there_is_no_section_where_there_is_nothing_to_say(rounds):
    assert trust_section(details(*rounds)) == ""


def test_a_round_whose_median_is_nothing_has_no_ratio():
    first = report(1, weights=False)
    for row in first.contributions:
        row.scores["distance"] = 0.0
    page = trust_section(replace(details(first), plan={"rule": "median"}))
    assert '">–</td>' in page
