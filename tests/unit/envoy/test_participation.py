from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from envoy import messages
from envoy.participation import Participation, ParticipationStore, Stage, is_same_request
from federation.errors import InvalidNameError, StorageError
from federation.names import ExperimentId
from federation.v1 import director_pb2

if TYPE_CHECKING:
    from pathlib import Path

ASSIGNMENT = director_pb2.Assignment(
    experiment="trial-00000001", manifest=b"{}", signature=b"s", signing_key=b"k", aggregator_address="a:1"
)


def _record(stage: Stage = Stage.ACCEPTED, **fields: object) -> Participation:
    values = {"experiment": ExperimentId("trial-00000001"), "assignment": ASSIGNMENT.SerializeToString(), **fields}
    return Participation(stage=stage, **values)  # type: ignore[arg-type]


def test_a_restarted_envoy_remembers(tmp_path: Path) -> None:
    record = ParticipationStore(tmp_path).save(_record(reason="wartet", approved=True, asked_at=2.5))
    again = ParticipationStore(tmp_path)
    assert again.get("trial-00000001") == record
    assert record.message == ASSIGNMENT


def test_an_ended_experiment_leaves_its_record_and_nothing_else(tmp_path: Path) -> None:
    store = ParticipationStore(tmp_path)
    store.save(_record(Stage.ENDED))
    folder = store.folder_of("trial-00000001")
    (folder / "workspace").mkdir()
    (folder / "workspace" / "data").write_text("x")
    (folder / "outside").symlink_to(tmp_path)
    store.clean("trial-00000001")
    assert [path.name for path in folder.iterdir()] == ["participation.json"]
    assert tmp_path.exists()


def test_a_record_that_makes_no_sense_stops_the_envoy(tmp_path: Path) -> None:
    (tmp_path / "trial-00000001").mkdir()
    (tmp_path / "trial-00000001" / "participation.json").write_text("{}")
    with pytest.raises(StorageError, match="not readable"):
        ParticipationStore(tmp_path)


def test_no_path_is_built_from_what_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        ParticipationStore(tmp_path).folder_of("../../etc")


@pytest.mark.parametrize("field", ["manifest", "signature", "signing_key"])
def test_an_assignment_with_other_content_is_another_request(field: str) -> None:
    other = director_pb2.Assignment()
    other.CopyFrom(ASSIGNMENT)
    setattr(other, field, b"other")
    assert not is_same_request(ASSIGNMENT, other)


def test_a_moved_aggregator_does_not_make_another_request() -> None:
    other = director_pb2.Assignment()
    other.CopyFrom(ASSIGNMENT)
    other.aggregator_address = "b:2"
    assert is_same_request(ASSIGNMENT, other)


@pytest.mark.parametrize(
    ("record", "kind", "final"),
    [
        (_record(Stage.PENDING, reason="?"), "answer", ""),
        (_record(Stage.ACCEPTED), "answer", ""),
        (_record(Stage.REFUSED, reason="no"), "answer", "trial-00000001"),
        (_record(Stage.ENDED, outcome="finished"), "status", "trial-00000001"),
        (_record(Stage.ENDED, outcome="failed", error_class="KeyError"), "status", "trial-00000001"),
        (_record(Stage.ENDED), "answer", "trial-00000001"),
    ],
)
def test_whoever_asks_again_is_told_the_same(record: Participation, kind: str, final: str) -> None:
    word = messages.word_on(record)
    assert word.WhichOneof("message") == kind
    assert messages.final_word_on(word) == final


@pytest.mark.parametrize("keeps_files", [False, True])
def test_an_end_has_room_once_the_rest_has_gone(tmp_path: Path, *, keeps_files: bool) -> None:
    store = ParticipationStore(tmp_path)
    folder = store.folder_of("trial-00000001")
    full = folder / f".participation.json.{os.getpid()}.tmp"
    full.mkdir()  # as long as it is there, no record can be written
    if keeps_files:
        with pytest.raises(StorageError):
            store.conclude(_record(Stage.ENDED), keeps_files=True)
        assert full.exists()
    else:
        store.conclude(_record(Stage.ENDED), keeps_files=False)
        assert ParticipationStore(tmp_path).get("trial-00000001") == _record(Stage.ENDED)
    assert store.get("trial-00000001") == _record(Stage.ENDED)
