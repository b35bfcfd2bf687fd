"""What a newcomer runs, as they run it: the quickstart, the examples, and every command that prints JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from federation.client.local import LocalFederation, LocalSite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.needs_torch, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[3]
HOSPITALS = ("north", "south", "island")
SITES = (*HOSPITALS, "fourth", "fifth")
EXAMPLES = ("numpy_logistic", "partial_model", "digits_cnn")


def federation(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "federation.client.command", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=200, env={**os.environ, **(environment or {})},
    )  # fmt: skip


def site(number: int, name: str) -> LocalSite:
    """Return a site with its part of the digits, and its patients if it is a hospital."""
    samples = "federation.data.samples"
    shards: list[dict[str, Any]] = [
        {
            "name": "digits",
            "kind": "digits",
            "factory": f"{samples}:DigitsShard",
            "options": {"part": number, "parts": len(SITES)},
        }
    ]
    if name in HOSPITALS:
        shards.append(
            {
                "name": "patients",
                "kind": "breast-cancer",
                "factory": f"{samples}:BreastCancerShard",
                "options": {"hospital": name},
            }
        )
    return LocalSite(name=name, shards=shards, settings={"policy": {"release_logs": True}})


def in_rounds(source: Path, target: Path, rounds: int) -> Path:
    """Copy an example with another number of rounds."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    text, changed = re.subn(r"rounds=\d+", f"rounds={rounds}", (target / "experiment.py").read_text())
    assert changed == 1
    (target / "experiment.py").write_text(text)
    return target


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    folder = tmp_path_factory.mktemp("examples")
    with LocalFederation(folder, sites=[site(number, name) for number, name in enumerate(SITES)]) as running:
        yield running


@pytest.fixture(scope="module")
def call(local: LocalFederation) -> Callable[..., list[Any]]:
    """Return what runs a command with ``--json`` as the federation's user, and parses every line of its output."""

    def run(*arguments: object) -> list[Any]:
        done = federation(*arguments, "--json", environment={"FEDERATION_HOME": str(local.folder / "user")})
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="module")
def completed(local: LocalFederation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Submit every example at once, wait for all, and return their ids."""
    copies = tmp_path_factory.mktemp("copies")
    with local.connect() as client:
        ids = {name: client.submit(in_rounds(ROOT / "examples" / name, copies / name, 2)) for name in EXAMPLES}
        for name, experiment in ids.items():
            story = [f"{event.kind} {event.site}: {event.text}" for event in client.watch(experiment)]
            summary = client.show(experiment).summary
            assert summary.state == "completed", f"{name}: {summary.reason}\n" + "\n".join(story)
    return ids


def test_the_quickstart_says_what_it_found_and_leaves_no_process(
    tmp_path: Path, processes_of: Callable[[Path], list[int]]
) -> None:
    done = federation("quickstart", "--rounds", 3, "--json", "-o", tmp_path / "quickstart")
    assert done.returncode == 0, done.stderr
    (result,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(result) == {
        "experiment", "sites", "federated_accuracy", "pooled_accuracy", "rounds", "seconds", "model", "report", "plot",
    }  # fmt: skip
    assert [set(entry) for entry in result["sites"]] == [{"name", "examples", "alone_accuracy"}] * 3
    assert [entry["name"] for entry in result["sites"]] == list(HOSPITALS)
    accuracies = [result["federated_accuracy"], result["pooled_accuracy"]]
    assert all(0 < value <= 1 for value in [*accuracies, *(entry["alone_accuracy"] for entry in result["sites"])])
    assert result["rounds"] == 3 and result["seconds"] > 0 and result["experiment"]
    assert Path(result["model"]).stat().st_size > 0
    assert "<html" in Path(result["report"]).read_text()
    assert Path(result["plot"]).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_completes_with_every_site_it_plans_for(
    local: LocalFederation, completed: dict[str, str], example: str
) -> None:
    with local.connect() as client:
        details = client.show(completed[example])
    planned = len(SITES) if example == "digits_cnn" else len(HOSPITALS)
    assert [entry.round for entry in details.rounds] == [1, 2]
    # Sites that offer the data beyond those wanted may join late, and then take part too.
    assert all(len(entry.contributions) >= planned for entry in details.rounds)
    assert all(part.outcome == "counted" for entry in details.rounds for part in entry.contributions)


def test_list_and_show_print_json(call: Callable[..., list[Any]], completed: dict[str, str]) -> None:
    (listed,) = call("list", "--state", "completed")
    assert {row["experiment"] for row in listed} >= set(completed.values())
    (details,) = call("show", completed["numpy_logistic"])
    assert details["summary"]["rounds_done"] == 2


def test_watch_prints_one_event_per_line(call: Callable[..., list[Any]], completed: dict[str, str]) -> None:
    events = call("watch", completed["numpy_logistic"])
    assert [event["round"]["round"] for event in events if event["round"]] == [1, 2]


@pytest.mark.parametrize("source", [(), ("--site", "north")], ids=["the aggregator's", "a site's"])
def test_logs_print_one_object_per_line(
    call: Callable[..., list[Any]], completed: dict[str, str], source: tuple[str, ...]
) -> None:
    lines = call("logs", completed["numpy_logistic"], *source)
    assert all(set(line) == {"line"} and isinstance(line["line"], str) for line in lines)
    assert lines or source  # a trainer may have had nothing to say


def test_download_and_report_print_json_and_write_their_files(
    call: Callable[..., list[Any]], completed: dict[str, str], tmp_path: Path
) -> None:
    experiment = completed["numpy_logistic"]
    (artifact,) = call("download", experiment, "last.safetensors", "-o", tmp_path)
    assert (tmp_path / "last.safetensors").stat().st_size == artifact["bytes"]
    (details,) = call("report", experiment, "-o", tmp_path / "report.html")
    assert details["summary"]["experiment"] == experiment
    assert (tmp_path / "report.html").exists()


def test_envoys_and_doctor_print_json(call: Callable[..., list[Any]], completed: dict[str, str]) -> None:
    (envoys,) = call("envoys")
    assert {envoy["site"] for envoy in envoys} == set(SITES)
    findings = call("doctor")
    assert findings and all(finding["outcome"] != "bad" for finding in findings)


def test_a_terminal_of_80_columns_cuts_no_state_and_no_name(local: LocalFederation, completed: dict[str, str]) -> None:
    environment = {"FEDERATION_HOME": str(local.folder / "user"), "COLUMNS": "80"}
    listed = federation("list", environment=environment).stdout
    newest = federation("list", "--limit", "1", environment=environment)
    assert newest.stdout.count("completed") == 1 and "there may be more: --limit" in newest.stderr
    assert listed.count("completed") == len(completed) and all(name in listed for name in completed.values())
    offered = federation("envoys", environment=environment).stdout
    assert offered.count("breast-cancer") == len(HOSPITALS) and "\u2026" not in listed + offered


def test_submit_and_cancel_print_json(call: Callable[..., list[Any]], local: LocalFederation, tmp_path: Path) -> None:
    # Far more rounds than fit before the cancel: how fast this machine is does not decide the test.
    source = in_rounds(ROOT / "examples" / "numpy_logistic", tmp_path / "long", 100_000)
    (submitted,) = call("submit", source)
    (cancelled,) = call("cancel", submitted["experiment"])
    assert cancelled["experiment"] == submitted["experiment"]
    with local.connect() as client:
        assert list(client.watch(submitted["experiment"]))
        assert client.show(submitted["experiment"]).summary.state == "cancelled"
