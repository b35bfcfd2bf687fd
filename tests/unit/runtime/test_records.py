"""Identities that a recycled pid cannot fake, and exit records that are whole or absent."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from federation.errors import DiskFullError, PeerError, StorageError
from federation.runtime.records import (
    ExitRecord,
    ExitStatus,
    ProcessIdentity,
    is_for_want_of_room,
    read_exit_record,
    write_atomically,
    write_exit_record,
)
from federation.runtime.resources import peak_resident_bytes, resident_bytes


def test_an_identity_survives_writing_and_reading() -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert ProcessIdentity.from_json(identity.to_json()) == identity
    assert identity.is_alive()


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another"}, {"pid": 2**22 + 1}])
def test_another_process_with_the_same_number_is_not_the_same(change: dict[str, object]) -> None:
    other = dataclasses.replace(ProcessIdentity.of(os.getpid()), **change)  # type: ignore[arg-type]
    assert not other.is_alive()


def test_a_process_that_does_not_exist_has_no_identity() -> None:
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(2**22 + 1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x", "start_ticks": 1, "boot_id": ""}'])
def test_what_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a process identity"):
        ProcessIdentity.from_json(text)


def test_an_exit_record_is_read_as_written(tmp_path: Path) -> None:
    record = ExitRecord(outcome="failed", error_class="StorageError", reason="disk full", at=12.5)
    write_exit_record(tmp_path, record)
    assert read_exit_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["exit.json"]


@pytest.mark.parametrize(
    "text", [None, "", "{", "{}", '{"outcome": "x", "error_class": "", "reason": "", "at": "soon"}']
)
def test_a_record_that_is_not_whole_counts_as_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "exit.json").write_text(text)
    assert read_exit_record(tmp_path) is None


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(StorageError, match="taken"):
        write_atomically(folder, b"new")  # a file cannot replace a folder
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_for_which_a_quota_has_no_room_is_a_full_disk(tmp_path: Path, files_of_at_most: Any) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    with files_of_at_most(1000), pytest.raises(DiskFullError, match="no room for 2000 bytes"):
        write_atomically(tmp_path / "kept", bytes(2000))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_want_of_room_is_told_by_the_error_or_by_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_for_want_of_room(DiskFullError(tmp_path, 10, 5 << 30), tmp_path)
    assert not is_for_want_of_room(StorageError("a lock is held"), tmp_path)
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert is_for_want_of_room(StorageError("a line could not be written"), tmp_path)
    assert not is_for_want_of_room(PeerError("the director refuses"), tmp_path)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(code=0, signal=None, record=None), "exit code 0"),
        (ExitStatus(code=None, signal=int(signal.SIGKILL), record=None), "ended by SIGKILL"),
        (ExitStatus(code=None, signal=None, record=None), "exit code unknown"),
        (
            ExitStatus(code=120, signal=None, record=None, full_disk=Path("/srv")),
            "exit code 120 (it could not write why: /srv is on a full disk)",
        ),
        (
            ExitStatus(code=None, signal=None, record=ExitRecord(outcome="completed", at=1.0)),
            "exit code unknown (completed)",
        ),
        (
            ExitStatus(code=1, signal=None, record=ExitRecord(outcome="failed", error_class="E", reason="r", at=1.0)),
            "exit code 1 (failed: E: r)",
        ),
    ],
)
def test_a_status_says_how_it_ended(status: ExitStatus, text: str) -> None:
    assert str(status) == text


def test_what_ended_for_want_of_room_is_known_with_and_without_a_record() -> None:
    full, other = (ExitRecord(outcome="fault", error_class=name, at=1.0) for name in ("DiskFullError", "StorageError"))
    assert ExitStatus(code=1, signal=None, record=full).is_disk_full
    assert ExitStatus(code=120, signal=None, record=None, full_disk=Path("/srv")).is_disk_full
    assert not ExitStatus(code=1, signal=None, record=other).is_disk_full


def test_resident_memory_is_plausible() -> None:
    assert 1_000_000 < resident_bytes() <= peak_resident_bytes() + 4096 * 100
