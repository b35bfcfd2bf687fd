"""An experiment's life, from submission to every way it can end, over real processes and real mutual TLS.

``north`` and ``south`` take everything; ``west`` offers its rows under other kinds, and its owner has a policy: few
rounds, and no pinned key.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.client.report import write_report
from federation.errors import NotFoundError, StorageError
from federation.storage.safetensors_files import read_model
from federation.tensors import TensorRole
from federation.training.state import StateStore

if TYPE_CHECKING:
    from collections.abc import Iterator

BOTH = ("north", "south")
SITES = {"north": ("rows", "classes", "guarded"), "south": ("rows", "classes"), "west": ("guarded",)}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"plan": {"rounds": 3}},
    "bfloat16, keep": {"dtype": "bfloat16", "plan": {"rounds": 3, "optimizer_state": "keep"}},
    "float16, aggregate": {"dtype": "float16", "plan": {"rounds": 3, "optimizer_state": "aggregate"}},
    "local-head": {"plan": {"local": ["bias"]}},
}


@pytest.fixture(scope="module")
def trial(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    settings = {
        **{name: {"policy": {"max_experiments": 10}, "keep_workspaces": True} for name in BOTH},
        "west": {"policy": {"max_rounds": 3, "known": "nobody.toml"}},
    }
    director = {"aggregators": {"max_running": 10}}
    folder = tmp_path_factory.mktemp("life")
    with start(folder, SITES, settings=settings, director=director) as running:
        yield running


@pytest.fixture(scope="module")
def variants(trial: Any) -> dict[str, Any]:
    """Experiments of many kinds, all at once."""
    return {name: trial.submit(name=name.replace(", ", "-"), **settings) for name, settings in VARIANTS.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_is_what_plain_fedavg_computes(variants: Any, reckon: Any, variant: str) -> None:
    run = variants[variant]
    details = run.complete()
    assert details.summary.degraded is False
    reckoning = reckon(run.source, BOTH)
    expected, got = reckoning.run(), run.model()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_allclose(got[name].astype(np.float64), value.astype(np.float64), rtol=1e-5)
    assert any(np.any(got[name] != reckoning.experiment.build().arrays[name]) for name in got)


def test_a_local_head_never_leaves_its_site(variants: Any, trial: Any, reckon: Any) -> None:
    run = variants["local-head"]
    details = run.complete()
    schema, arrays = read_model(_downloaded(run, "best.safetensors"))
    assert schema["bias"].role is TensorRole.LOCAL
    np.testing.assert_array_equal(arrays["bias"], [0.0])  # as it was submitted
    weights_alone = 4 * 4
    sent = {(entry.site, entry.bytes_up) for one in details.rounds for entry in one.contributions}
    assert sent == {("north", weights_alone), ("south", weights_alone)}
    # At home each was trained on its own.
    reckoning = reckon(run.source, BOTH)
    reckoning.run()
    for site in BOTH:
        home = StateStore(trial.folder / "sites" / site / "state" / "experiments" / run.id / "workspace")
        kept = home.of_round(details.summary.rounds_done).tensors["bias"]
        np.testing.assert_allclose(kept, reckoning.local[site]["bias"], rtol=1e-5)
        assert kept != 0.0


def test_a_finished_experiment_can_be_read_in_every_way(variants: Any, trial: Any, tmp_path: Path) -> None:
    run = variants["float32"]
    details = run.complete()
    assert details.summary in trial.client.list(states=("completed",))
    assert {entry.site: entry.examples for entry in details.sites} == {"north": 24, "south": 40}
    assert {entry.answer for entry in details.sites} <= {"accepted", "finished"}  # sites say so a moment later
    for one in details.rounds:
        assert {entry.site: entry.outcome for entry in one.contributions} == {"north": "counted", "south": "counted"}
        assert sum(entry.weight for entry in one.contributions) == pytest.approx(1.0)
    assert {"last.safetensors", "best.safetensors", "history.json"} <= {entry.name for entry in details.artifacts}
    write_report(details, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    digests = [details.manifest_digest, *(entry.digest for entry in details.artifacts)]
    for text in (run.id, "completed", "north", "south", *digests):
        assert text in page
    assert "<script src" not in page and "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    log = list(trial.client.logs(run.id))
    assert any(json.loads(line)["experiment"] == run.id for line in log)
    envoys = {envoy.site: envoy for envoy in trial.client.envoys()}
    assert all(envoys[site].online for site in SITES)
    assert {shard.kind: shard.train_examples for shard in envoys["north"].shards}["rows"] == 24


def test_two_experiments_run_at_once(trial: Any, reckon: Any) -> None:
    runs = [trial.submit(plan={"seed": seed}, holds={"south": [1]}) for seed in (1, 2)]
    for run in runs:
        run.gate.listen("train south 1")  # both are inside a round now
    for run in runs:
        run.gate.open("south")
    for run in runs:
        run.complete()
        expected, got = reckon(run.source, BOTH).run(), run.model()
        np.testing.assert_allclose(got["weights"], expected["weights"], rtol=1e-5)
    assert not np.array_equal(runs[0].model()["weights"], runs[1].model()["weights"])


def test_cancelling_ends_aggregator_collaborators_and_trainers(trial: Any, eyes: Any) -> None:
    run = trial.submit(holds={"south": [1]})
    run.gate.listen("train south 1")
    pids = {what: run.processes(what) for what in ("aggregator", "collaborator", "trainer")}
    assert {what: len(found) for what, found in pids.items()} == {"aggregator": 1, "collaborator": 2, "trainer": 2}
    watching = eyes([pid for found in pids.values() for pid in found])
    assert trial.client.cancel(run.id, reason="wrong learning rate") == "cancelled"
    watching.wait()
    details = run.end()
    assert (details.summary.state, details.summary.reason) == ("cancelled", "wrong learning rate")
    assert trial.client.cancel(run.id) == "cancelled"


def test_an_experiment_that_no_shard_matches_waits_and_says_why(trial: Any) -> None:
    run = trial.submit(shard="x-rays")
    said = run.until(lambda event: event.kind == "assignment").text
    assert "0 of the 2 it wants are online with a matching shard of kind x-rays" in said
    assert "offered are classes, guarded, rows" in said
    assert run.details.summary.reason == said
    trial.client.cancel(run.id)
    assert run.end().summary.state == "cancelled"


def test_a_site_whose_policy_refuses_says_why_and_the_others_go_on(trial: Any) -> None:
    run = trial.submit(shard="guarded", plan={"rounds": 4, "sites": 1, "minimum_sites": 1})
    details = run.complete()
    answers = {entry.site: entry for entry in details.sites}
    assert answers["west"].answer == "refused"
    assert answers["west"].reason == "the plan has 4 rounds; this site allows at most 3"
    assert {entry.site for one in details.rounds for entry in one.contributions} == {"north"}


def test_a_user_whose_key_is_not_pinned_waits_for_the_owners_approval(trial: Any) -> None:
    run = trial.submit(shard="guarded")
    run.until(lambda event: event.site == "west" and "has not pinned" in event.text)
    assert {entry.site: entry.answer for entry in run.details.sites}["west"] == "pending"
    config = trial.folder / "sites" / "west" / "envoy.toml"
    done = subprocess.run(
        [sys.executable, "-m", "envoy", "approve", run.id, "--config", str(config)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run.complete()


def test_early_stopping_ends_well(trial: Any) -> None:
    run = trial.submit(plan={"rounds": 50, "early_stopping": {"patience": 1, "min_delta": 1e6}})
    details = run.complete()
    assert details.summary.rounds_done == 2
    assert (details.summary.rounds_planned, details.summary.degraded) == (50, False)
    assert "did not improve" in details.summary.reason


def test_a_site_that_is_too_slow_is_left_out_of_the_round_and_it_is_said(trial: Any) -> None:
    plan = {"quorum": 1, "minimum_sites": 1, "deadline_s": 5.0, "evaluate_every": 0}
    run = trial.submit(plan=plan, holds={"south": [1]})
    run.until_round(1)
    run.gate.open("south")
    details = run.complete()
    outcomes = [{entry.site: entry.outcome for entry in one.contributions} for one in details.rounds]
    assert outcomes == [{"north": "counted", "south": "late"}, {"north": "counted", "south": "counted"}]
    assert details.summary.degraded
    assert run.gate.count("train south 1") == 1


def test_a_site_that_is_too_slow_costs_its_rounds_no_evaluation_and_takes_part_when_it_is_done(trial: Any) -> None:
    plan = {"rounds": 3, "quorum": 1, "minimum_sites": 1, "deadline_s": 5.0}
    run = trial.submit(plan=plan, holds={"south": [1]})
    run.until_round(2)
    run.gate.open("south")
    details = run.complete()
    silent = {"south": "still at work since round 1"}
    assert [one.unevaluated for one in details.rounds] == [silent, silent, {}]
    assert [one.contributions[1].outcome for one in details.rounds] == ["late", "late", "counted"]
    assert [run.gate.count(f"train south {number}") for number in (1, 2, 3)] == [1, 0, 1]


def test_a_failing_task_says_its_class_and_nothing_of_the_patient(trial: Any) -> None:
    run = trial.submit(plan={"quorum": 1, "minimum_sites": 1}, fails=["south"])
    details = run.complete()
    failed = [entry for one in details.rounds for entry in one.contributions if entry.site == "south"]
    assert [(entry.outcome, entry.reason) for entry in failed] == [("failed", "KeyError")] * 2
    assert details.summary.degraded
    logs = [*trial.client.logs(run.id), *trial.client.logs(run.id, site="south")]
    assert "patient" not in "\n".join([run.story, repr(details), *logs])
    home = trial.folder / "sites" / "south" / "state" / "experiments" / run.id
    assert "patient 17 of south" in (home / "trainer.log").read_text()


@pytest.mark.needs_torch
def test_batch_norm_statistics_are_averaged_and_its_counter_is_the_largest(trial: Any, reckon: Any) -> None:
    run = trial.submit(Path(__file__).parent / "torch_experiment")
    run.complete()
    got = run.model()
    assert got["1.num_batches_tracked"].dtype == np.int64
    assert got["1.num_batches_tracked"] == 2 * 5  # rounds times the batches of the larger site
    for name, value in reckon(run.source, BOTH, shard="Classes").run().items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-6)


def test_the_command_submits_and_watches_to_the_end(trial: Any) -> None:
    source, _ = trial.prepare(plan={"rule": "median"})
    command = [sys.executable, "-m", "federation.client.command"]
    profile = str(trial.folder / "user" / "client.toml")
    done = subprocess.run(
        [*command, "submit", str(source), "--watch", "--json", "--profile", profile],
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "federation: note: a round needs 2 of 2 updates" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    rounds = [line["round"]["round"] for line in lines if line.get("round")]
    assert rounds == [1, 2]


def test_an_unknown_experiment_or_artifact_is_not_found(variants: Any, trial: Any, tmp_path: Path) -> None:
    for ask in (trial.client.show, trial.client.cancel, lambda name: list(trial.client.watch(name))):
        with pytest.raises(NotFoundError, match="nobody-1"):
            ask("nobody-1")
    with pytest.raises(NotFoundError):
        trial.client.download(variants["float32"].id, "other.bin", tmp_path / "other")
    with pytest.raises(NotFoundError, match="'nowhere' takes no part"):
        list(trial.client.logs(variants["float32"].id, site="nowhere"))
    assert not list(tmp_path.iterdir())


def test_logs_say_experiment_round_and_site(variants: Any, trial: Any) -> None:
    run = variants["float32"]
    list(trial.client.watch(run.id))
    site = trial.folder / "sites" / "north" / "state" / "experiments" / run.id
    texts = {
        "aggregator": "\n".join(trial.client.logs(run.id)),
        "collaborator": (site / "collaborator.log").read_text(),
        "envoy": (trial.folder / "logs" / "envoy-north.log").read_text(),
    }
    lines = {who: [json.loads(line) for line in text.splitlines()] for who, text in texts.items()}
    committed = [line for line in lines["aggregator"] if line["event"] == "round committed"]
    assert [(line["experiment"], line["round"]) for line in committed] == [(run.id, number) for number in (1, 2, 3)]
    admitted = [line for line in lines["collaborator"] if line["event"].endswith("is admitted")]
    assert [(line["experiment"], line["site"], line["round"]) for line in admitted] == [
        (run.id, "north", number) for number in (1, 2, 3)
    ]
    here = [line for line in lines["envoy"] if line.get("experiment") == run.id]
    assert here[0]["event"] == f"experiment {run.id} is accepted"  # its end may not be in the log yet
    assert all(line["site"] == "north" for line in here)


def test_what_cannot_be_written_is_named(variants: Any, trial: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for fetch in (
        lambda path: trial.client.download(variants["float32"].id, "initial.safetensors", path),
        lambda path: trial.client.report(variants["float32"].id, path),
    ):
        with pytest.raises(StorageError, match=r"cannot write .*/file/target: "):
            fetch(tmp_path / "file" / "target")
    assert trial.client.report(variants["float32"].id, tmp_path).read_text().startswith("<!")


def _downloaded(run: Any, name: str) -> Path:
    run.model(name)
    folder: Path = run.trial.folder / "downloads" / run.id
    return folder / name
