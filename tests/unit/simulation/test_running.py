"""A simulation as a whole: one seed gives one result, whoever works and however often it is stopped."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.errors import ConfigurationError, PlanError, StorageError
from federation.rounds.history import RoundRecord, SiteOutcome
from federation.simulation import Rule, Script, TimeModel, simulate
from federation.simulation.executors import SimulationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation import Experiment

    Make = Callable[..., Experiment]

X = np.linspace(0.0, 1.0, 20, dtype=np.float32).reshape(5, 4)


def digests(result: Any) -> list[str]:
    return [record.model_digest for record in result.records]


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bits(make: Make, workers: int) -> None:
    alone = simulate(make(), sites=7, sample=4)
    together = simulate(make(), sites=7, sample=4, workers=workers)
    assert digests(alone) == digests(together)
    assert alone.arrays["w"].tobytes() == together.arrays["w"].tobytes()


def test_every_run_of_one_seed_is_the_same_and_another_seed_is_not(make: Make) -> None:
    assert digests(simulate(make(), sites=4)) == digests(simulate(make(), sites=4))
    assert digests(simulate(make(), sites=4)) != digests(simulate(make(), sites=4, seed=4))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_sites_keep_is_the_same_whoever_serves_them(make: Make, workers: int, tmp_path: Path) -> None:
    kept = {"local": ("own",), "optimizer_state": "keep"}
    alone = simulate(make(**kept), sites=5, sample=2)
    other = simulate(make(**kept), sites=5, sample=2, workers=workers, folder=tmp_path / "run")
    assert digests(alone) == digests(other)
    assert sorted(path.name for path in (tmp_path / "run" / "state").iterdir()) == [f"site-{n:03d}" for n in range(5)]


def test_a_plan_that_would_have_other_sites_than_are_simulated_is_refused(make: Make) -> None:
    with pytest.raises(PlanError, match=r"those simulated, 4, and not 3: give --sites"):
        simulate(make(), sites=4, changes={"sites": 3})
    assert len(simulate(make(), sites=3, changes={"sites": 3}).records[0].sites) == 3


def test_a_scripts_pattern_that_matches_no_site_is_refused(make: Make) -> None:
    script = Script(rules=(Rule(do="fail", sites=("site-1*",)),))
    with pytest.raises(PlanError, match=r"'site-1\*' matches no site; they are site-000 to site-002"):
        simulate(make(), sites=3, script=script)


def test_a_lost_site_makes_the_run_degraded_and_is_back_when_the_script_says(make: Make) -> None:
    script = Script(rules=(Rule(do="lose", sites=("site-001",), rounds=(2, 2), back=4),))
    result = simulate(make(quorum=1), sites=3, script=script)
    assert [len(record.sites) for record in result.records] == [3, 3, 2, 3, 3, 3]
    lost = result.records[1].sites[1]
    assert (lost.outcome, lost.reason) == (SiteOutcome.LOST, "lost by the script")
    assert result.outcome == "completed"


def test_a_late_joiner_takes_part_from_its_round_on(make: Make) -> None:
    result = simulate(make(), sites=3, script=Script(join_round={"site-002": 3}))
    assert [len(record.sites) for record in result.records] == [2, 2, 3, 3, 3, 3]
    assert [record.total_sites for record in result.records] == [2, 2, 3, 3, 3, 3]


def test_a_failing_site_misses_the_quorum_until_the_run_fails(make: Make, tmp_path: Path) -> None:
    spoils = {"site-001/3": "raise"}
    result = simulate(make(spoils=spoils, max_failures=1), sites=3, folder=tmp_path)
    assert result.outcome == "failed"
    assert "site-001 failed (RuntimeError)" in result.reason
    assert len(result.records) == 2
    assert "the scanner is off" in (tmp_path / "events.log").read_text()


def test_an_update_that_is_not_finite_fails_its_site_as_over_the_wire(make: Make) -> None:
    result = simulate(make(spoils={"site-001/2": "nan"}, sites=3, quorum=2), sites=3)
    row = result.records[1].sites[1]
    assert (row.outcome, row.reason) == (SiteOutcome.FAILED, "NotFinite")
    assert np.isfinite(result.arrays["w"]).all()


def test_an_update_beyond_the_norm_is_refused(make: Make) -> None:
    result = simulate(make(max_norm=1e-3, quorum=1, max_failures=1), sites=2)
    assert result.outcome == "failed"
    assert "max_norm allows 0.001" in result.reason


def test_an_update_much_longer_than_the_median_is_refused_from_the_second_round_on(make: Make) -> None:
    spoils = {"site-002/2": "far"}
    result = simulate(make(max_norm_ratio=5.0, sites=4, quorum=3, spoils=spoils), sites=4)
    assert all(row.outcome is SiteOutcome.COUNTED for row in result.records[0].sites)
    refused = result.records[1].sites[2]
    assert refused.outcome is SiteOutcome.REFUSED and "max_norm_ratio allows 5 times" in refused.reason
    assert refused.update_norm > 5 * max(row.update_norm for row in result.records[0].sites)


def test_no_site_weighs_more_than_the_plan_allows(make: Make) -> None:
    plan = {"quorum": 4, "sites": 4}
    free, capped = (
        max(row.weight for row in simulate(make(**plan, **cap), sites=4, partition="sizes:0.3").records[0].sites)
        for cap in ({}, {"max_share": 0.3})
    )
    assert capped == pytest.approx(0.3) and free > 0.3


def test_a_deadline_passes_in_simulated_time_and_only_with_a_time_model(make: Make) -> None:
    script = Script(rules=(Rule(do="delay", sites=("site-000",), rounds=(2, 2), seconds=50.0),))
    plan = {"deadline_s": 10.0, "sites": 3, "quorum": 2}
    result = simulate(make(**plan), sites=3, script=script)
    assert [row.outcome for row in result.records[1].sites] == [
        SiteOutcome.LATE, SiteOutcome.COUNTED, SiteOutcome.COUNTED,
    ]  # fmt: skip
    assert result.records[1].simulated_seconds == pytest.approx(10.0, abs=1.0)
    slow = TimeModel(seconds_per_example=10.0)
    assert simulate(make(**plan, max_failures=1), sites=3, times=slow).outcome == "failed"
    assert simulate(make(**plan), sites=3).outcome == "completed"


def test_answers_about_an_earlier_candidate_do_not_pass_for_those_about_the_next(make: Make) -> None:
    """The model takes 2 s on its way down, a round waits 1.2 s: no evaluation is in time."""
    result = simulate(make(deadline_s=1.2), sites=3, times=TimeModel(down=16.0, latency_s=0.0))
    assert result.outcome == "completed", result.reason
    assert [record.metrics for record in result.records] == [{}] * 6


def test_a_worker_that_died_is_replaced_and_the_result_is_the_same(make: Make, tmp_path: Path) -> None:
    once = {"site-002/2": f"die:{tmp_path / 'died'}"}
    result = simulate(make(spoils=once), sites=4, workers=2)
    assert (tmp_path / "died").exists()
    assert digests(result) == digests(simulate(make(), sites=4))


def test_a_site_that_ends_its_worker_every_time_ends_the_run_by_name(make: Make) -> None:
    with pytest.raises(SimulationError, match="a worker died while site site-002 worked"):
        simulate(make(spoils={"site-002/2": "die"}), sites=4, workers=2)


def test_an_experiment_without_data_says_how_to_give_it(make: Make) -> None:
    experiment = make()
    experiment.data = None
    with pytest.raises(PlanError, match="names no data; give --data module:Class"):
        simulate(experiment, sites=2)


def test_changes_replace_plan_fields(make: Make) -> None:
    result = simulate(make(), sites=2, changes={"rounds": 2, "learning_rate": 0.5})
    assert (len(result.records), result.spec.plan.learning_rate) == (2, 0.5)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"options.k": 2}, {"k": 2, "max_staleness": 5}),
        ({"algorithm": "fedbuff", "options.k": 2}, {"k": 2, "max_staleness": 5}),
        ({"options": {"k": 2}}, {"k": 2}),
        ({"algorithm": "fedavgm", "options.beta": 0.5}, {"beta": 0.5}),
        ({"algorithm": "fedavg"}, {}),
    ],
)
def test_changing_one_option_leaves_the_others_and_another_algorithm_none(
    make: Make, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    experiment = make(rounds=1, algorithm="fedbuff", options={"k": 3, "max_staleness": 5})
    assert simulate(experiment, sites=3, changes=changes).spec.plan.options == options


class Told:
    """A tracker that notes what it hears, and may fail in a round."""

    def __init__(self, fails_in: int = 0) -> None:
        self.heard: list[str] = []
        self._fails_in = fails_in

    def start(self, run: Any) -> None:
        self.heard.append(f"start {run['name']}")

    def round(self, record: RoundRecord) -> None:
        self.heard.append(f"round {record.round}")
        if record.round == self._fails_in:
            raise StorageError("the disk is full")

    def end(self, outcome: str) -> None:
        self.heard.append(f"end {outcome}")


def test_trackers_are_told_of_start_rounds_and_end(make: Make) -> None:
    told = Told()
    simulate(make(rounds=2), sites=2, trackers=[told])
    assert told.heard == ["start mean", "round 1", "round 2", "end completed"]


def test_a_tracker_of_a_run_that_goes_on_or_is_over_is_shown_the_whole_run(make: Make, tmp_path: Path) -> None:
    def press(record: RoundRecord) -> None:
        if record.round == 1:
            os.kill(os.getpid(), signal.SIGINT)

    stopped, whole, over = Told(), Told(), Told()
    with pytest.raises(KeyboardInterrupt):
        simulate(make(rounds=2), sites=2, folder=tmp_path, trackers=[stopped], on_round=press)
    for told in (whole, over):
        simulate(make(rounds=2), sites=2, folder=tmp_path, trackers=[told])
    assert stopped.heard == ["start mean", "round 1", "end interrupted"]
    assert whole.heard == over.heard == ["start mean", "round 1", "round 2", "end completed"]


def test_every_tracker_is_ended_when_one_fails(make: Make) -> None:
    first, second = Told(), Told(fails_in=1)
    with pytest.raises(StorageError, match="the disk is full"):
        simulate(make(), sites=2, trackers=[first, second])
    assert first.heard == second.heard == ["start mean", "round 1", "end failed"]


def test_a_rule_that_trusts_none_of_the_sites_is_refused_before_a_round_is_tried(make: Make) -> None:
    trusting = {"rule": "monna", "byzantine": 1, "rule_options": {"trusted": "north"}, "local": ("own", "seen")}
    with pytest.raises(PlanError, match="trusts site 'north', which is none of the sites, site-000 to site-002"):
        simulate(make(minimum_sites=3, **trusting), sites=3)


def test_a_device_that_is_not_here_is_refused(make: Make) -> None:
    for device in ("cuda:99", "gpu"):
        with pytest.raises(ConfigurationError, match=f"device '{device}'"):
            simulate(make(), sites=2, device=device)
    assert digests(simulate(make(), sites=2, device="auto")) == digests(simulate(make(), sites=2, device="cpu"))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_asynchronous_method_is_the_same_with_any_number_of_workers(make: Make, workers: int) -> None:
    times = TimeModel(speed="lognormal:1.0")
    changes = {"algorithm": "fedbuff", "options": {"k": 2}, "rounds": 8}
    result = simulate(make(), sites=5, workers=workers, times=times, changes=changes)
    again = simulate(make(), sites=5, times=times, changes=changes)
    assert result.outcome == "completed", result.reason
    assert digests(result) == digests(again)
    assert any(row.staleness for record in result.records for row in record.sites)
    assert [len(record.sites) for record in result.records] == [2] * 8


def test_a_late_update_does_not_overtake_an_asynchronous_step(make: Make) -> None:
    changes = {"algorithm": "fedasync", "rounds": 6}
    result = simulate(make(), sites=3, times=TimeModel(speed="lognormal:1.0"), changes=changes)
    assert result.outcome == "completed", result.reason
    assert [len(record.sites) for record in result.records] == [1] * 6


def test_a_straggler_holds_its_place_for_one_deadline_though_rounds_go_on_closing(make: Make) -> None:
    changes = {"algorithm": "fedasync", "sites": 4, "sample": 2, "rounds": 50, "deadline_s": 1.0, "evaluate_every": 0}
    script = Script(rules=(Rule(do="delay", sites=("site-000",), seconds=1e6),))
    result = simulate(make(), sites=4, times=TimeModel(), script=script, changes=changes)
    assert result.outcome == "completed", result.reason
    ages = [row.staleness for record in result.records for row in record.sites]
    held = ages.index(1, 2)  # in round 2 the first of the places has not gone to the straggler yet
    assert ages[2:held] == [0] * (held - 2) and ages[held:] == [1] * (50 - held)
    assert 1.0 <= sum(record.simulated_seconds for record in result.records[1:held]) < 1.1


def test_the_result_reports_what_each_site_has(make: Make) -> None:
    report = simulate(make(rounds=1), sites=3, partition="shards:1").report
    assert report is not None
    assert (report.sites, report.classes) == (("site-000", "site-001", "site-002"), ("0", "1", "2"))
    assert sorted(map(tuple, report.counts.tolist())) == [(0, 0, 20), (0, 20, 0), (20, 0, 0)]


QUARANTINE = {"score": "distance", "threshold": 3.0, "rounds": 2}


def test_a_site_that_goes_far_round_after_round_is_quarantined_and_not_asked_any_more(make: Make) -> None:
    spoils = {f"site-002/{number}": "far" for number in range(1, 9)}
    result = simulate(make(spoils=spoils, quarantine=QUARANTINE, rule="median", local=("seen",)), sites=5)
    names = [[row.site for row in record.sites] for record in result.records]
    assert all("site-002" in round_ for round_ in names[:2])
    assert not any("site-002" in round_ for round_ in names[2:]) and len(names) == 6
    held = result.records[-1].quarantined
    assert [(row.site, row.since_round) for row in held] == [("site-002", 2)]
    assert result.records[0].sites[2].scores["distance"] > 3 * result.records[0].sites[1].scores["distance"]


def test_too_few_sites_outside_quarantine_end_the_run_with_the_reason(make: Make) -> None:
    spoils = {f"site-00{site}/{number}": "far" for site in (2, 3) for number in range(1, 9)}
    plan = {"quarantine": QUARANTINE, "rule": "median", "local": ("seen",), "minimum_sites": 4}
    result = simulate(make(spoils=spoils, **plan), sites=5)
    assert (result.outcome, len(result.records)) == ("failed", 2)
    assert "3 sites are connected and site-002, site-003 in quarantine" in result.reason


def test_a_site_in_quarantine_keeps_the_state_of_its_method(source: Path, tmp_path: Path) -> None:
    kept = {}
    for rounds in (2, 6):
        changes = {"rounds": rounds, "quarantine": {"score": "krum", "threshold": 5.0, "rounds": 2}}
        folder = tmp_path / f"run-{rounds}"
        result = simulate(source, sites=5, folder=folder, attack="sign_flip:50", hostile=1, changes=changes)
        assert [row.site for row in result.records[-1].quarantined] == ["site-004"], result.records[-1].sites
        state = folder / "state" / "site-004"
        kept[rounds] = {path.relative_to(state): path.read_bytes() for path in state.rglob("*") if path.is_file()}
    assert kept[2] and kept[2] == kept[6], "SCAFFOLD's c_i is as its last counted round left it"
