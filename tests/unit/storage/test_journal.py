"""The journal: one owner, every line durable, a torn end cut, damage refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.errors import DiskFullError, StorageError
from federation.storage.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

BODIES = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20), st.none()),
    max_size=4,
)


def three_lines(path: Path) -> list[bytes]:
    with Journal.open(path) as journal:
        for number in range(1, 4):
            assert journal.append("event", {"number": number}) == number
    return path.read_bytes().splitlines(keepends=True)


def numbers(path: Path) -> list[int]:
    with Journal.open(path) as journal:
        return [entry.body["number"] for entry in journal.entries()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), BODIES), max_size=5))
def test_what_was_appended_is_read_again_in_order(tmp_path: Path, events) -> None:
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    with Journal.open(path) as journal:
        for kind, body in events:
            journal.append(kind, body)
    with Journal.open(path) as journal:
        assert [(entry.kind, entry.body) for entry in journal.entries()] == events
        assert journal.last_sequence == len(events)


def test_sequences_go_on_after_a_restart(tmp_path: Path) -> None:
    three_lines(tmp_path / "journal")
    with Journal.open(tmp_path / "journal") as journal:
        assert journal.append("event", {"number": 4}) == 4
        assert [entry.sequence for entry in journal.entries(after=2)] == [3, 4]


def test_a_line_torn_at_any_byte_is_cut_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = three_lines(path)
    for length in range(len(lines[2])):
        path.write_bytes(b"".join(lines[:2]) + lines[2][:length])
        with Journal.open(path) as journal:
            assert journal.last_sequence == 2
            assert journal.append("event", {"number": 9}) == 3
        assert numbers(path) == [1, 2, 9]


def test_a_last_line_whose_middle_never_reached_the_disk_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = three_lines(path)
    path.write_bytes(lines[0] + lines[1] + lines[2][:12] + bytes(len(lines[2]) - 13) + b"\n")
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize("place", [0, 8, 20, -2], ids=["checksum", "separator", "body", "end"])
def test_damage_before_the_last_line_is_refused(tmp_path: Path, place: int) -> None:
    path = tmp_path / "journal"
    lines = three_lines(path)
    middle = bytearray(lines[1])
    middle[place] ^= 1
    path.write_bytes(lines[0] + bytes(middle) + lines[2])
    before = path.read_bytes()
    with pytest.raises(StorageError, match="damaged at line 2"):
        Journal.open(path)
    assert path.read_bytes() == before


def test_a_missing_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = three_lines(path)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(StorageError, match="lines are missing"):
        Journal.open(path)


def test_a_second_opener_learns_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.open(path), pytest.raises(StorageError, match=f"held by process {os.getpid()} on "):
        Journal.open(path)
    Journal.open(path).close()


def test_another_process_cannot_open_it_either(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    script = (
        "import sys, pathlib; from federation.storage.journal import Journal; Journal.open(pathlib.Path(sys.argv[1]))"
    )
    with Journal.open(path):
        done = subprocess.run([sys.executable, "-c", script, str(path)], check=False, capture_output=True, text=True)
    assert f"held by process {os.getpid()}" in done.stderr


def test_a_killed_owner_leaves_the_journal_free(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    script = f"""
import os, signal, pathlib
from federation.storage.journal import Journal
journal = Journal.open(pathlib.Path({str(path)!r}))
journal.append("event", {{"number": 1}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert numbers(path) == [1]


@pytest.mark.parametrize("body", [{"a": float("nan")}, {"a": object()}, {"a": {1, 2}}], ids=["nan", "object", "set"])
def test_a_body_that_is_not_json_is_refused_and_nothing_is_written(tmp_path: Path, body) -> None:
    path = tmp_path / "journal"
    with Journal.open(path) as journal:
        with pytest.raises(ValueError, match="JSON"):
            journal.append("event", body)
        assert journal.append("event", {"number": 1}) == 1
    assert numbers(path) == [1]


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    script = f"""
import json, pathlib, resource
from federation.errors import DiskFullError
from federation.storage.journal import Journal
journal = Journal.open(pathlib.Path({str(path)!r}))
journal.append("event", {{"number": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    journal.append("event", {{"number": 2, "long": "x" * 8192}})
except DiskFullError as error:
    print(error.needed_bytes)
assert journal.append("event", {{"number": 3}}) == 2
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 0
    assert numbers(path) == [1, 3]


def test_after_a_failed_fsync_no_line_is_taken_until_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Journal.open(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StorageError, match="Input/output error"):
                journal.append("event", {"number": 1})
        with pytest.raises(StorageError, match="open it again"):
            journal.append("event", {"number": 2})
    with Journal.open(path) as journal:
        assert journal.append("event", {"number": 3}) >= 1


def test_a_line_is_readable_by_people(tmp_path: Path) -> None:
    line = three_lines(tmp_path / "journal")[0]
    assert json.loads(line[9:]) == {"sequence": 1, "kind": "event", "body": {"number": 1}}


def test_a_full_disk_error_is_a_storage_error() -> None:
    assert issubclass(DiskFullError, StorageError)
