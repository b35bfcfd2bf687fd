"""A site's own update outlives its process, and is not believed blindly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from federation.errors import StorageError
from federation.names import Attempt, RoundNumber
from federation.storage.retained import RetainedFile, RetainedUpdate, Retention, file_digest
from federation.tensors.digest import payload_digest

if TYPE_CHECKING:
    from pathlib import Path


def update_in(folder: Path, content: bytes = b"delta", round_number: int = 2) -> RetainedUpdate:
    path = folder / "delta.bin"
    path.write_bytes(content)
    file = RetainedFile(payload="delta", path=path, nbytes=len(content), digest=payload_digest(content))
    return RetainedUpdate(round=RoundNumber(round_number), attempt=Attempt(1), header=b"\x00header", files=(file,))


def test_an_update_is_found_again_by_a_later_process(tmp_path: Path) -> None:
    update = update_in(tmp_path)
    Retention(tmp_path / "kept", boot="one").keep(update)
    later = Retention(tmp_path / "kept", boot="one")
    assert later.current() == update
    assert later.verify(update)


@pytest.mark.parametrize(("boot", "is_kept"), [("one", True), ("two", False)])
def test_an_update_without_digest_is_believed_until_the_machine_starts_anew(
    tmp_path: Path, boot: str, is_kept: bool
) -> None:
    update = update_in(tmp_path)
    update = replace(update, files=(replace(update.files[0], digest=None),))
    Retention(tmp_path / "kept", boot="one").keep(update)
    later = Retention(tmp_path / "kept", boot=boot)
    assert later.current() == (update if is_kept else None)
    assert later.verify(update)


def test_a_digest_is_believed_after_the_machine_has_started_anew(tmp_path: Path) -> None:
    update = update_in(tmp_path)
    Retention(tmp_path / "kept", boot="one").keep(update)
    assert Retention(tmp_path / "kept", boot="two").current() == update


def test_nothing_is_remembered_at_first(tmp_path: Path) -> None:
    assert Retention(tmp_path, boot="one").current() is None


def test_a_newer_update_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    retention = Retention(tmp_path / "kept", boot="one")
    retention.keep(update_in(tmp_path, round_number=2))
    retention.keep(update_in(tmp_path, b"newer", round_number=3))
    found = retention.current()
    assert found is not None
    assert found.round == 3


@pytest.mark.parametrize(("released", "is_kept"), [(1, True), (2, False), (3, False)])
def test_it_is_forgotten_once_its_round_is_over(tmp_path: Path, released: int, is_kept: bool) -> None:
    retention = Retention(tmp_path / "kept", boot="one")
    retention.keep(update_in(tmp_path))
    retention.release(RoundNumber(released))
    assert (retention.current() is not None) is is_kept


def test_an_update_whose_file_is_gone_or_short_is_forgotten(tmp_path: Path) -> None:
    retention = Retention(tmp_path / "kept", boot="one")
    update = update_in(tmp_path)
    for damage in (update.files[0].path.unlink, lambda: update.files[0].path.write_bytes(b"del")):
        update_in(tmp_path)
        retention.keep(update)
        damage()
        assert retention.current() is None
        assert Retention(tmp_path / "kept", boot="one").current() is None


def test_a_file_that_was_changed_does_not_verify(tmp_path: Path) -> None:
    update = update_in(tmp_path)
    update.files[0].path.write_bytes(b"DELTA")
    assert not Retention(tmp_path / "kept", boot="one").verify(update)


def test_a_damaged_record_is_forgotten(tmp_path: Path) -> None:
    retention = Retention(tmp_path, boot="one")
    retention.keep(update_in(tmp_path))
    record = tmp_path / "retained"
    for damaged in (
        b'{"round": 1}',
        record.read_bytes()[:-40],
        record.read_bytes().replace(b'"round": 2', b'"round": 3'),
    ):
        record.write_bytes(damaged)
        assert Retention(tmp_path, boot="one").current() is None


def test_a_shorter_record_over_a_longer_one_is_whole(tmp_path: Path) -> None:
    retention = Retention(tmp_path / "kept", boot="one")
    long = update_in(tmp_path, round_number=2)
    retention.keep(replace(long, header=bytes(5000)))
    short = replace(long, round=RoundNumber(3))
    retention.keep(short)
    assert Retention(tmp_path / "kept", boot="one").current() == short


def test_reading_for_a_digest_ends_once_it_is_over(tmp_path: Path) -> None:
    update = update_in(tmp_path, bytes(5 << 20))
    answers = iter([False, False, True])
    with pytest.raises(StorageError):
        file_digest(update.files[0], lambda: next(answers))
    assert list(answers) == []


def test_a_link_is_not_followed_to_something_that_looks_like_the_update(tmp_path: Path) -> None:
    update = update_in(tmp_path)
    Retention(tmp_path / "kept", boot="one").keep(update)
    path = update.files[0].path
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert Retention(tmp_path / "kept", boot="one").current() is None
