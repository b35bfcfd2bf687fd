"""One owner at a time, who is named to others, and nothing that is left behind means anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from federation.storage.lock_files import HeldError, drop_lock, take_lock

if TYPE_CHECKING:
    from pathlib import Path


def test_a_second_owner_is_told_who_the_first_is_and_what_it_does(tmp_path: Path) -> None:
    lock = take_lock(tmp_path / "lock", doing="a\x1b[2Jb")
    with pytest.raises(HeldError) as caught:
        take_lock(tmp_path / "lock")
    assert caught.value.holder == f"process {os.getpid()} on {os.uname().nodename} (a[2Jb)"
    drop_lock(tmp_path / "lock", lock)
    assert not (tmp_path / "lock").exists()


def test_what_an_owner_that_is_gone_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on elsewhere" + "x" * 500)
    lock = take_lock(tmp_path / "lock")
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    drop_lock(tmp_path / "lock", lock)


def test_a_file_that_was_taken_away_between_opening_and_locking_it_makes_nobody_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, opened = take_lock(tmp_path / "lock"), []
    real = os.open

    def open_then_drop(*arguments: object) -> int:
        opened.append(real(*arguments))  # type: ignore[arg-type]
        if len(opened) == 1:
            drop_lock(tmp_path / "lock", first)
        return opened[-1]

    monkeypatch.setattr(os, "open", open_then_drop)
    second = take_lock(tmp_path / "lock")
    assert len(opened) == 2
    with pytest.raises(HeldError):
        take_lock(tmp_path / "lock")
    os.close(second)
