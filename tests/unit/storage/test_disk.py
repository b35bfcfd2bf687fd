"""Disk failures become our errors in one place; small files are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from federation.errors import DiskFullError, StorageError
from federation.storage.disk import (
    begin_writeback,
    pread_into,
    preallocate,
    pwrite_all,
    translated,
    try_lock,
    write_atomically,
)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_without_room_is_a_full_disk() -> None:
    descriptor = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(DiskFullError, match="no room for 3 bytes") as caught:
            pwrite_all(descriptor, b"abc", 0, Path("/dev/full"))
    finally:
        os.close(descriptor)
    assert caught.value.path == Path("/dev/full")
    assert caught.value.needed_bytes == 3


def test_other_failures_keep_their_text_and_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none: No such file or directory") as caught, translated(tmp_path / "none"):
        os.open(tmp_path / "none", os.O_RDONLY)
    assert not isinstance(caught.value, DiskFullError)


def test_reading_past_the_end_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    descriptor = os.open(path, os.O_RDONLY)
    with pytest.raises(StorageError, match="ends at byte 3, 2 bytes before"):
        pread_into(descriptor, bytearray(4), 1, path)
    os.close(descriptor)


def test_preallocation_reserves_blocks_keeps_content_and_never_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    descriptor = os.open(path, os.O_RDWR)
    preallocate(descriptor, 1 << 20, path)
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks * 512 >= 1 << 20
    preallocate(descriptor, 10, path)
    assert path.stat().st_size == 1 << 20
    assert path.read_bytes()[:4] == b"abc\0"
    os.close(descriptor)


@pytest.mark.parametrize("durable", [True, False])
def test_a_small_file_is_replaced_whole_and_private(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomically(path, b"new", durable=durable)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_replacement_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(source: object, target: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_locks_hold_between_openers_of_one_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    first, second = (os.open(path, os.O_RDWR) for _ in range(2))
    assert try_lock(first, exclusive=False)
    assert try_lock(second, exclusive=False)
    assert not try_lock(second, exclusive=True)
    os.close(first)
    assert try_lock(second, exclusive=True)
    os.close(second)


def test_writing_ahead_of_an_fsync_changes_nothing_and_never_fails(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"0123456789")
    with path.open("r+b") as file:
        begin_writeback(file.fileno(), 2, 5)
    begin_writeback(-1, 0, 10)
    assert path.read_bytes() == b"0123456789"
