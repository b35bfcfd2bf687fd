"""Sites that are late in a simulation where deadlines hold: what they cost, and what a stopped run knows of them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from federation.rounds.history import RoundRecord, SiteOutcome
from federation.simulation import Rule, Script, TimeModel, simulate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation import Experiment

    Make = Callable[..., Experiment]


def test_a_late_site_ends_what_it_has_begun_before_it_begins_the_next(make: Make) -> None:
    """Site 0 is 15 s late in round 2 and needs 4 s in round 3: it has its rest of 5 s before, so that takes 9."""
    rules = (
        Rule(do="delay", sites=("site-000",), rounds=(2, 2), seconds=15.0),
        Rule(do="delay", sites=("site-000",), rounds=(3, 3), seconds=4.0),
    )
    plan = {"deadline_s": 10.0, "sites": 3, "quorum": 2}
    result = simulate(make(**plan), sites=3, script=Script(rules=rules))
    assert [row.outcome for row in result.records[2].sites] == [SiteOutcome.COUNTED] * 3
    assert [record.simulated_seconds for record in result.records[1:4]] == pytest.approx([10.0, 9.0, 0.0], abs=0.5)


def test_a_late_site_is_not_waited_for_when_the_model_is_evaluated(make: Make) -> None:
    """Site 0 needs 25 s for round 2; round 3 has closed before it begins that, and it begins round 4 in its middle."""
    script = Script(rules=(Rule(do="delay", sites=("site-000",), rounds=(2, 2), seconds=25.0),))
    plan = {"deadline_s": 10.0, "sites": 3, "quorum": 2}
    result = simulate(make(**plan), sites=3, script=script)
    assert [record.simulated_seconds for record in result.records[1:5]] == pytest.approx([10, 10, 5, 0], abs=0.5)
    evaluating = [[row.site for row in record.sites if row.metrics] for record in result.records[1:4]]
    assert evaluating == [["site-001", "site-002"], ["site-001", "site-002"], ["site-000", "site-001", "site-002"]]


def test_a_late_site_that_is_done_while_others_evaluate_has_its_say(make: Make) -> None:
    """The model takes 2 s on its way down: site 0, 1 s late, is done in time to be waited for."""
    script = Script(rules=(Rule(do="delay", sites=("site-000",), rounds=(2, 2), seconds=11.0),))
    plan = {"deadline_s": 10.0, "sites": 3, "quorum": 2}
    times = TimeModel(down=16.0, latency_s=0.0)
    result = simulate(make(**plan), sites=3, script=script, times=times)
    late = result.records[1]
    assert late.sites[0].outcome is SiteOutcome.LATE and all(row.metrics for row in late.sites)
    assert late.simulated_seconds == pytest.approx(13.0, abs=0.5)


def test_a_late_site_does_not_begin_to_train_for_a_round_that_closed_meanwhile(make: Make) -> None:
    """Site 0 is at round 2 until 25 s; round 3 closes at 20 s; round 4, without it, is evaluated at 28 s."""
    rules = (
        Rule(do="delay", sites=("site-000",), rounds=(2, 3), seconds=25.0),
        Rule(do="delay", sites=("site-001",), rounds=(4, 4), seconds=8.0),
    )
    plan = {"deadline_s": 10.0, "sites": 3, "sample": 2, "quorum": 1, "seed": 7}
    records = simulate(make(**plan), sites=3, script=Script(rules=rules)).records
    drawn = [[row.site for row in record.sites] for record in records[1:4]]
    assert ["site-000" in sites for sites in drawn] == [True, True, False]
    at_work = {"site-000": "still at work since round 2"}
    assert [record.unevaluated for record in records[1:4]] == [at_work, at_work, {}]


STOPS: dict[str, tuple[int, dict[str, Any], tuple[Rule, ...]]] = {
    "two at work": (
        3,
        {"sites": 4, "sample": 3, "seed": 1},
        (
            Rule(do="delay", sites=("site-000",), rounds=(2, 2), seconds=25.0),
            Rule(do="delay", sites=("site-001",), rounds=(3, 3), seconds=12.0),
        ),
    ),
    "at work, with a task before it that is called off": (
        3,
        {"sites": 3, "evaluate_every": 0},
        (
            Rule(do="delay", sites=("site-000",), rounds=(2, 2), seconds=25.0),
            Rule(do="delay", sites=("site-000",), rounds=(3, 3), seconds=8.0),
        ),
    ),
    "at work while it is not drawn": (
        2,
        {"sites": 3, "sample": 2, "seed": 10},
        (Rule(do="delay", sites=("site-000",), rounds=(2, 2), seconds=25.0),),
    ),
}


@pytest.mark.parametrize(("stop", "plan", "rules"), STOPS.values(), ids=STOPS)
def test_a_run_that_was_stopped_goes_on_with_those_who_are_late(
    make: Make, tmp_path: Path, stop: int, plan: dict[str, Any], rules: tuple[Rule, ...]
) -> None:
    def press(record: RoundRecord) -> None:
        if record.round == stop:
            os.kill(os.getpid(), signal.SIGINT)

    plan = {**plan, "deadline_s": 10.0, "quorum": 1}
    arguments: dict[str, Any] = {"sites": plan["sites"], "script": Script(rules=rules)}
    whole = simulate(make(**plan), **arguments)
    with pytest.raises(KeyboardInterrupt):
        simulate(make(**plan), **arguments, folder=tmp_path, on_round=press)
    rest = simulate(make(**plan), **arguments, folder=tmp_path)
    assert any(row.outcome is SiteOutcome.LATE for row in whole.records[stop - 1].sites)
    for one, other in zip(rest.records, whole.records, strict=True):
        assert one.model_digest == other.model_digest
        assert one.simulated_seconds == pytest.approx(other.simulated_seconds)
        assert [row.outcome for row in one.sites] == [row.outcome for row in other.sites]
        assert (one.metrics, one.unevaluated) == (other.metrics, other.unevaluated)
