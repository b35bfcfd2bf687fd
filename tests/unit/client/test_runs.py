"""Run folders are read as they were written, torn or foreign ones are told apart, and a federated run is one too."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from federation.client import views
from federation.client.runs import federated_run, find_runs, is_finished, read_run
from federation.errors import ConfigurationError, ConflictError, NotFoundError, StorageError
from federation.storage.ownership import owned

from . import made_runs as made

if TYPE_CHECKING:
    from pathlib import Path

    from federation.v1 import director_pb2 as pb


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = read_run(made.make_run(tmp_path / "a", [0.5, 0.4], seed=3, plan={"rounds": 2}))
    assert (run.name, run.seed, run.sites, run.outcome) == ("digits", 3, 1, "completed")
    assert run.plan["rounds"] == 2
    assert [record.metrics["loss"] for record in run.records] == [0.5, 0.4]


def test_a_last_line_torn_by_a_crash_is_left_out(tmp_path: Path) -> None:
    folder = made.make_run(tmp_path / "a", [0.5, 0.4])
    with (folder / "history.jsonl").open("a") as history:
        history.write('{"round": 3, "epo')
    assert len(read_run(folder).records) == 2


def test_a_damaged_line_inside_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = made.make_run(tmp_path / "a", [0.5])
    with (folder / "history.jsonl").open("a") as history:
        history.write('{"round": 2}\n')
    with pytest.raises(ConfigurationError, match=r"history.jsonl, line 2: not a round record"):
        read_run(folder)


@pytest.mark.parametrize("text", ['{"format": 9}', "[]", "{"])
def test_a_head_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    folder = made.make_run(tmp_path / "a", [0.5])
    (folder / "run.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"run\.json is"):
        read_run(folder)


def test_a_folder_that_is_no_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="federation simulate DIR --out"):
        read_run(tmp_path)


def test_a_folder_of_runs_stands_for_its_runs_in_name_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        made.make_run(tmp_path / "sweep" / name, [0.5])
    made.make_run(tmp_path / "single", [0.5])
    found = find_runs([tmp_path / "single", tmp_path / "sweep"])
    assert [run.folder.name for run in found] == ["single", "a", "b"]


def test_only_a_run_that_ended_well_is_finished(tmp_path: Path) -> None:
    assert is_finished(made.make_run(tmp_path / "a", [0.5]))
    assert not is_finished(made.make_run(tmp_path / "b", [0.5], outcome=""))
    assert not is_finished(made.make_run(tmp_path / "c", [0.5], outcome="failed"))
    assert not is_finished(tmp_path / "nothing")


def test_a_federated_run_is_written_as_a_run_folder(tmp_path: Path, reply: pb.GetExperimentReply) -> None:
    details = views.details_of(reply)
    with federated_run(details, tmp_path / "run"):
        pass
    run = read_run(tmp_path / "run")
    assert (run.kind, run.name, run.sites) == ("federated", "tumours", 2)
    assert [record.bytes_up for record in run.records] == [entry.bytes_up for entry in details.rounds]
    assert run.records[0].sites[0].train_seconds == details.rounds[0].contributions[0].train_seconds
    assert json.loads((tmp_path / "run" / "run.json").read_text())["outcome"] == "completed"


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path, reply: pb.GetExperimentReply) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(StorageError, match=r"/file/run: "),
        federated_run(views.details_of(reply), tmp_path / "file/run"),
    ):
        pass


def test_a_federated_run_is_refused_where_a_run_is_being_written(tmp_path: Path, reply: pb.GetExperimentReply) -> None:
    folder = made.make_run(tmp_path / "run", [0.5])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with owned(folder, command="federation simulate"):
        refused = pytest.raises(ConflictError, match=f"in use by process {os.getpid()} .*federation simulate")
        with refused, federated_run(views.details_of(reply), folder):
            pass
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_federated_run_may_be_written_again_and_no_other_run_is_overwritten(
    tmp_path: Path, reply: pb.GetExperimentReply
) -> None:
    details = views.details_of(reply)
    for _ in range(2):
        with federated_run(details, tmp_path / "run"):
            (tmp_path / "run" / "model.safetensors").touch()
    simulated = made.make_run(tmp_path / "other", [0.5])
    before = (simulated / "run.json").read_bytes()
    with pytest.raises(ConflictError, match=r"another run already \(digits\)"), federated_run(details, simulated):
        pass
    assert (simulated / "run.json").read_bytes() == before
