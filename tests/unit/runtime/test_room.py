"""One decision for whoever meets a refusing disk: want of room, or something else."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from federation.errors import DiskFullError, StorageError
from federation.runtime.records import write_atomically
from federation.runtime.room import free_bytes, is_want_of_room, refusal
from federation.storage.disk import translated

if TYPE_CHECKING:
    from pathlib import Path

WANT_OF_ROOM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
OTHER = [errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE]


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", WANT_OF_ROOM, ids=errno.errorcode.get)
def test_every_kind_of_no_room_is_a_full_disk_whoever_meets_it(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise os_error(number)

    assert is_want_of_room(os_error(number))
    with pytest.raises(DiskFullError) as of_storage, translated(tmp_path / "file", 10):
        raise os_error(number)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFullError) as of_a_record:
        write_atomically(tmp_path / "file", bytes(10))
    for caught in (of_storage, of_a_record):
        assert (caught.value.path, caught.value.needed_bytes) == (tmp_path / "file", 10)
        assert caught.value.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


@pytest.mark.parametrize("number", OTHER, ids=errno.errorcode.get)
def test_every_other_refusal_is_not_and_keeps_its_text_and_path(tmp_path: Path, number: int) -> None:
    error = refusal(os_error(number), tmp_path / "file", "could not be written", needed_bytes=10)
    assert type(error) is StorageError
    assert str(error) == f"{tmp_path / 'file'} could not be written: {os.strerror(number)}"
    assert str(refusal(os_error(number), tmp_path / "file")) == f"{tmp_path / 'file'}: {os.strerror(number)}"


def test_what_is_free_is_told_of_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet" / "there") == pytest.approx(free_bytes(tmp_path), rel=0.2)


def test_a_quota_is_told_although_the_disk_has_room(tmp_path: Path, files_of_at_most: Any) -> None:
    with (
        files_of_at_most(100),
        pytest.raises(DiskFullError, match="raise the quota") as caught,
        translated(tmp_path / "file", 200),
        open(tmp_path / "file", "wb", buffering=0) as file,
    ):
        os.write(file.fileno(), bytes(100))
        os.write(file.fileno(), bytes(100))
    assert caught.value.free_bytes > 0
