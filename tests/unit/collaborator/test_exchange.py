from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from federation.collaborator import exchange
from federation.collaborator.exchange import Exchange
from federation.errors import DiskFullError, TaskError
from federation.names import Digest
from federation.tensors.digest import payload_digest

if TYPE_CHECKING:
    from pathlib import Path


def _write(path: Path, data: bytes) -> Digest:
    descriptor = exchange.open_for_write(path, len(data))
    os.pwrite(descriptor, data, 0)
    os.close(descriptor)
    return payload_digest(data)


def test_room_that_there_is_not_is_a_full_disk_at_every_try_until_there_is(
    tmp_path: Path, files_of_at_most: Any
) -> None:
    path, nbytes = tmp_path / "delta.bin", 20 << 20
    for _ in range(2):  # a file that was only stretched by the first would look reserved to the second
        with files_of_at_most(10 << 20), pytest.raises(DiskFullError, match="no room for 20971520 bytes"):
            exchange.open_for_write(path, nbytes)
    os.close(exchange.open_for_write(path, nbytes))
    assert path.stat().st_blocks * 512 >= nbytes


def test_a_longer_file_is_cut_and_a_shorter_one_grows(tmp_path: Path) -> None:
    path = tmp_path / "delta.bin"
    for nbytes in (70_000, 5, 100_000, 0):
        os.close(exchange.open_for_write(path, nbytes))
        assert path.stat().st_size == nbytes
        assert path.stat().st_blocks * 512 >= nbytes


def test_a_result_is_not_read_through_a_link_the_trainer_planted(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(b"secret")
    (tmp_path / "delta.bin").symlink_to(key)
    with pytest.raises(TaskError) as caught:
        exchange.open_result(tmp_path / "delta.bin", 6)
    assert caught.value.error_class == "WrongResult"


def test_a_result_that_is_a_pipe_does_not_hang_the_site(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "delta.bin")
    with pytest.raises(TaskError, match="WrongResult"):
        exchange.open_result(tmp_path / "delta.bin", 6)


@pytest.mark.parametrize("nbytes", [5, 7])
def test_a_result_of_another_size_is_refused(tmp_path: Path, nbytes: int) -> None:
    (tmp_path / "delta.bin").write_bytes(b"123456")
    with pytest.raises(TaskError) as caught:
        exchange.open_result(tmp_path / "delta.bin", nbytes)
    assert "6 bytes" in caught.value.traceback


def test_a_missing_result_is_a_task_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="WrongResult"):
        exchange.open_result(tmp_path / "delta.bin", 1)


def test_a_link_in_the_place_of_a_model_is_replaced_and_not_followed(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(b"secret")
    (tmp_path / "model-0.bin").symlink_to(key)
    _write(tmp_path / "model-0.bin", b"abc")
    assert key.read_bytes() == b"secret"
    assert not (tmp_path / "model-0.bin").is_symlink()


def test_the_model_used_longest_ago_makes_room(tmp_path: Path) -> None:
    files = Exchange(tmp_path / "exchange")
    digests = []
    for data in (b"one", b"two"):
        path = files.free_model_slot()
        digests.append(_write(path, data))
        files.keep_model(path, digests[-1])
    assert files.held_model(digests[0]) is not None
    files.free_model_slot()
    assert files.held_model(digests[1]) is None
    assert files.held_model(digests[0]) is not None


def test_a_restarted_collaborator_finds_the_model_it_fetched(tmp_path: Path) -> None:
    digest = _write(Exchange(tmp_path).free_model_slot(), b"model")
    assert Exchange(tmp_path).find_held_model(digest, 5) is not None
    assert Exchange(tmp_path).find_held_model(Digest(b"0" * 32), 5) is None


def test_a_fixed_file_is_held_only_with_its_digest(tmp_path: Path) -> None:
    files = Exchange(tmp_path)
    digest = _write(files.path(exchange.BASE), b"base")
    assert files.find_held(exchange.BASE, digest, 4)
    assert not files.find_held(exchange.BASE, Digest(b"1" * 32), 4)


@pytest.mark.parametrize("size", [0, 9])
def test_an_encoded_result_has_at_least_a_byte_and_no_more_than_its_codec_makes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "up-control.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(TaskError, match="WrongResult") as caught:
        exchange.open_encoded(path, 8)
    assert f"{size} bytes" in caught.value.traceback
    path.write_bytes(bytes(8))
    descriptor, nbytes = exchange.open_encoded(path, 8)
    os.close(descriptor)
    assert nbytes == 8
