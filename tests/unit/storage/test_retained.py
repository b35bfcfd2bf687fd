"""A site's own update outlives its process, and is not believed blindly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from federation.names import Attempt, RoundNumber
from federation.storage.retained import RetainedFile, RetainedUpdate, Retention
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
    Retention(tmp_path / "kept").keep(update)
    later = Retention(tmp_path / "kept")
    assert later.current() == update
    assert later.verify(update)


def test_nothing_is_remembered_at_first(tmp_path: Path) -> None:
    assert Retention(tmp_path).current() is None


def test_a_newer_update_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    retention = Retention(tmp_path / "kept")
    retention.keep(update_in(tmp_path, round_number=2))
    retention.keep(update_in(tmp_path, b"newer", round_number=3))
    found = retention.current()
    assert found is not None
    assert found.round == 3


@pytest.mark.parametrize(("released", "is_kept"), [(1, True), (2, False), (3, False)])
def test_it_is_forgotten_once_its_round_is_over(tmp_path: Path, released: int, is_kept: bool) -> None:
    retention = Retention(tmp_path / "kept")
    retention.keep(update_in(tmp_path))
    retention.release(RoundNumber(released))
    assert (retention.current() is not None) is is_kept


def test_an_update_whose_file_is_gone_or_short_is_forgotten(tmp_path: Path) -> None:
    retention = Retention(tmp_path / "kept")
    update = update_in(tmp_path)
    for damage in (update.files[0].path.unlink, lambda: update.files[0].path.write_bytes(b"del")):
        update_in(tmp_path)
        retention.keep(update)
        damage()
        assert retention.current() is None
        assert Retention(tmp_path / "kept").current() is None


def test_a_file_that_was_changed_does_not_verify(tmp_path: Path) -> None:
    update = update_in(tmp_path)
    update.files[0].path.write_bytes(b"DELTA")
    assert not Retention(tmp_path / "kept").verify(update)


def test_a_damaged_record_is_forgotten(tmp_path: Path) -> None:
    retention = Retention(tmp_path)
    retention.keep(update_in(tmp_path))
    record = tmp_path / "retained"
    for damaged in (
        b'{"round": 1}',
        record.read_bytes()[:-40],
        record.read_bytes().replace(b'"round": 2', b'"round": 3'),
    ):
        record.write_bytes(damaged)
        assert Retention(tmp_path).current() is None


def test_a_shorter_record_over_a_longer_one_is_whole(tmp_path: Path) -> None:
    retention = Retention(tmp_path / "kept")
    long = update_in(tmp_path, round_number=2)
    retention.keep(replace(long, header=bytes(5000)))
    short = replace(long, round=RoundNumber(3))
    retention.keep(short)
    assert Retention(tmp_path / "kept").current() == short
