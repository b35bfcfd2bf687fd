"""A run folder: a run that was stopped or killed goes on to the same bits, and no other run goes on in it."""

from __future__ import annotations

import json
import math
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.data.shard import ArrayShard
from federation.errors import ConflictError
from federation.rounds.history import RoundRecord, SiteOutcome
from federation.simulation import Rule, Script, running, simulate
from federation.simulation.run_folder import checkpointed_round
from federation.storage.safetensors_files import read_model

from .stops import stopping

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation import Experiment

    Make = Callable[..., Experiment]

X = np.linspace(0.0, 1.0, 20, dtype=np.float32).reshape(5, 4)


def digests(result: Any) -> list[str]:
    return [record.model_digest for record in result.records]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(make: Make, tmp_path: Path, stop: int, workers: int) -> None:
    plan: dict[str, Any] = {"local": ("own",), "sample": 3, "sites": 5}
    script = Script(rules=(Rule(do="drop", probability=0.3),))
    whole = simulate(make(**plan, quorum=1), sites=5, script=script)

    arguments: dict[str, Any] = {"sites": 5, "script": script, "folder": tmp_path / "run", "workers": workers}
    with pytest.raises(KeyboardInterrupt, match=f"stopped after round {stop}; run the same command again"):
        simulate(make(**plan, quorum=1), **arguments, on_round=stopping(stop))
    assert checkpointed_round(tmp_path / "run") == stop
    rest = simulate(make(**plan, quorum=1), **arguments)
    assert digests(rest) == digests(whole)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [RoundRecord.from_json(json.loads(line)).model_digest for line in lines] == digests(whole)
    assert [record.bytes_down for record in rest.records] == [record.bytes_down for record in whole.records]
    assert [record.simulated_seconds for record in rest.records] == pytest.approx(
        [record.simulated_seconds for record in whole.records]
    )


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"round": "last"}'])
def test_a_folder_without_a_whole_checkpoint_has_no_round_to_go_on_after(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "state.json").write_text(text)
    assert checkpointed_round(tmp_path) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(
    make: Make, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CHECKPOINT_S", math.inf)  # however long ten rounds take here

    class KilledError(Exception):
        pass

    def kill(record: RoundRecord) -> None:
        if record.round == 13:
            raise KilledError

    plan: dict[str, Any] = {"rounds": 15, "local": ("own",), "sites": 3, "sample": 2, "evaluate_every": 0}
    arguments: dict[str, Any] = {"sites": 3, "workers": workers}
    with pytest.raises(KilledError):
        simulate(make(**plan), **arguments, folder=tmp_path, on_round=kill)
    seen: list[int] = []
    rest = simulate(make(**plan), **arguments, folder=tmp_path, on_round=lambda record: seen.append(record.round))
    assert seen == [11, 12, 13, 14, 15]
    whole = simulate(make(**plan), sites=3)
    assert digests(rest) == digests(whole)
    assert [record.bytes_down for record in rest.records] == [record.bytes_down for record in whole.records]


def test_a_finished_run_is_read_and_not_run_again(make: Make, tmp_path: Path) -> None:
    first = simulate(make(), sites=3, folder=tmp_path)
    seen: list[RoundRecord] = []
    again = simulate(make(), sites=3, folder=tmp_path, on_round=seen.append)
    assert not seen
    assert digests(again) == digests(first)
    assert again.arrays["w"].tobytes() == first.arrays["w"].tobytes()
    assert (again.best_round, again.outcome, again.reason) == (first.best_round, first.outcome, first.reason)


def test_a_folder_of_another_plan_is_refused_and_fresh_begins_anew(make: Make, tmp_path: Path) -> None:
    simulate(make(), sites=3, folder=tmp_path)
    with pytest.raises(ConflictError, match="is of another plan"):
        simulate(make(learning_rate=0.1), sites=3, folder=tmp_path)
    with pytest.raises(ConflictError, match="is of another plan"):
        simulate(make(), sites=3, folder=tmp_path, script=Script.dropping(0.5))
    assert simulate(make(learning_rate=0.1), sites=3, folder=tmp_path, resume=False).outcome == "completed"


def test_a_folder_of_other_code_or_data_is_refused(source: Path, tmp_path: Path) -> None:
    with (source / "steps.py").open("a") as steps:
        steps.write("import numpy as np\nfrom federation.data import ArrayShard\n")
        steps.write("PAIR = np.ones((8, 4)), np.ones(8)\n")
        steps.write("def Other():\n    return ArrayShard(train=PAIR, validation=PAIR)\n")
    simulate(source, sites=4, folder=tmp_path / "run")
    (source / "notes.txt").write_text("no code")
    assert simulate(source, sites=4, folder=tmp_path / "run").outcome == "completed"
    with pytest.raises(ConflictError, match="its code, data or conditions were others"):
        simulate(source, sites=4, data="steps:Other", folder=tmp_path / "run")
    script = source / "experiment.py"
    script.write_text(script.read_text().replace("batch_size=8", "batch_size=16"))
    with pytest.raises(ConflictError, match="its code, data or conditions were others"):
        simulate(source, sites=4, folder=tmp_path / "run")


def test_a_run_that_begins_anew_shows_no_division_of_the_one_before(make: Make, tmp_path: Path) -> None:
    whole = simulate(make(), sites=3, folder=tmp_path)
    assert whole.report is not None
    shards = {name: ArrayShard(train=(X, X), validation=(X, X)) for name in ("a", "b")}  # targets that are no classes
    other = simulate(make(), sites=("a", "b"), data=shards, folder=tmp_path, resume=False)
    assert other.report is None
    assert not list(tmp_path.glob("partition.*"))


def test_the_run_folder_has_what_comparing_reads(make: Make, tmp_path: Path) -> None:
    result = simulate(make(), sites=3, folder=tmp_path, label="mine", partition="shards:2")
    head = json.loads((tmp_path / "run.json").read_text())
    assert (head["format"], head["kind"], head["name"], head["label"]) == (1, "simulated", "mean", "mine")
    assert (head["partition"], head["sites"], head["outcome"]) == ("shards:2", list(result_sites(result)), "completed")
    assert head["spec"]["plan"]["sites"] == 3
    best = read_model(tmp_path / "best.safetensors")[1]
    assert best["w"].tobytes() == result.best["w"].tobytes()
    assert result.best_round == min(result.records, key=lambda record: record.metrics["loss"]).round
    assert result.report is not None
    assert (tmp_path / "partition.csv").read_text() == result.report.csv()
    assert (tmp_path / "partition.svg").read_text().startswith("<svg")


def result_sites(result: Any) -> list[str]:
    return [row.site for row in result.records[0].sites]


def test_a_stopped_run_goes_on_with_the_same_running_median(make: Make, tmp_path: Path) -> None:
    plan = {"max_norm_ratio": 5.0, "sites": 4, "quorum": 3, "spoils": {"site-002/3": "far"}}
    with pytest.raises(KeyboardInterrupt):
        simulate(make(**plan), sites=4, folder=tmp_path / "run", on_round=stopping(2))
    whole, resumed = simulate(make(**plan), sites=4), simulate(make(**plan), sites=4, folder=tmp_path / "run")
    assert digests(resumed) == digests(whole)
    assert resumed.records[2].sites[2].outcome is SiteOutcome.REFUSED


def test_a_stopped_run_goes_on_with_what_its_rule_kept(make: Make, tmp_path: Path) -> None:
    plan = {"rule": "centered_clipping", "byzantine": 1, "pre_aggregation": ("bucketing:2",), "sites": 5, "quorum": 5}
    plan["local"] = ("seen",)
    with pytest.raises(KeyboardInterrupt):
        simulate(make(**plan), sites=5, folder=tmp_path / "run", on_round=stopping(2))
    whole, resumed = simulate(make(**plan), sites=5), simulate(make(**plan), sites=5, folder=tmp_path / "run")
    assert digests(resumed) == digests(whole)
    for record in whole.records:
        losses = [row.train_metrics["loss"] for row in record.sites]
        assert record.train_metrics["loss"] == statistics.median(losses), "whatever one site claims"
    forgetful = simulate(make(**{**plan, "rule": "median"}), sites=5)
    assert digests(forgetful) != digests(whole)


def test_a_run_that_goes_on_after_a_site_joined_asks_that_site_too(make: Make, tmp_path: Path) -> None:
    script = Script(join_round={"site-000": 2})
    whole = simulate(make(), sites=4, script=script)
    with pytest.raises(KeyboardInterrupt):
        simulate(make(), sites=4, script=script, folder=tmp_path, on_round=stopping(3))
    assert digests(simulate(make(), sites=4, script=script, folder=tmp_path)) == digests(whole)


def test_a_resumed_run_keeps_its_sites_in_quarantine_and_what_they_keep(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    spoils = {f"site-002/{number}": "far" for number in range(1, 9)}
    plan = {"spoils": spoils, "rule": "median", "optimizer_state": "keep"}
    plan |= {"local": ("own", "seen"), "quarantine": {"score": "distance", "threshold": 3.0, "rounds": 2}}
    with pytest.raises(KeyboardInterrupt):
        simulate(make(**plan), sites=5, folder=folder, on_round=stopping(3))
    state = {path: path.read_bytes() for path in (folder / "state" / "site-002").rglob("*") if path.is_file()}
    resumed = simulate(make(**plan), sites=5, folder=folder)
    assert digests(resumed) == digests(simulate(make(**plan), sites=5))
    assert state and state == {path: path.read_bytes() for path in state}
    assert [row.site for row in resumed.records[-1].quarantined] == ["site-002"]
