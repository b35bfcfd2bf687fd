from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.training import kept_file
from federation.training.kept_file import KeptFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BYTES = 1 << 14


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "f").write_bytes(b"\x01" * _BYTES)
    return tmp_path / "f"


@pytest.fixture
def descriptor(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


def test_what_is_put_into_it_is_in_the_file(path, descriptor) -> None:
    place = KeptFile().bytes_of(descriptor, 100)
    assert place is not None
    assert place.shape == (100,)
    place[:] = 7
    assert path.read_bytes() == b"\x07" * 100 + b"\x01" * (_BYTES - 100)


def test_the_same_file_stays_mapped_and_another_one_of_its_name_does_not(path, descriptor) -> None:
    kept = KeptFile()
    first = kept.bytes_of(descriptor, 8)
    again = os.open(path, os.O_RDWR)
    second = kept.bytes_of(again, 8)
    assert first is not None
    assert second is not None
    assert np.shares_memory(first, second)
    os.close(again)
    path.rename(path.with_name("old"))
    path.write_bytes(bytes(_BYTES))
    other = os.open(path, os.O_RDWR)
    place = kept.bytes_of(other, 8)
    os.close(other)
    assert place is not None
    place[:] = 9
    assert path.read_bytes()[:9] == b"\x09" * 8 + b"\x00"
    assert path.with_name("old").read_bytes()[:8] == b"\x01" * 8


def test_a_file_that_became_longer_is_mapped_anew(path, descriptor) -> None:
    kept = KeptFile()
    assert kept.bytes_of(descriptor, _BYTES) is not None
    assert kept.bytes_of(descriptor, _BYTES + 1) is None
    path.write_bytes(b"\x01" * 2 * _BYTES)
    place = kept.bytes_of(descriptor, 2 * _BYTES)
    assert place is not None
    assert place.size == 2 * _BYTES


def test_a_file_without_a_place_on_the_disk_is_left_to_calls(tmp_path) -> None:
    opened = os.open(tmp_path / "holes", os.O_RDWR | os.O_CREAT)
    os.ftruncate(opened, _BYTES)
    place = KeptFile().bytes_of(opened, _BYTES)
    os.close(opened)
    assert place is None


def test_where_a_disk_that_never_writes_over_would_be_full_calls_are_left_to_say_so(descriptor, monkeypatch) -> None:
    kept = KeptFile()
    assert kept.bytes_of(descriptor, _BYTES) is not None
    monkeypatch.setattr(kept_file.os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=4096))
    assert kept.bytes_of(descriptor, _BYTES) is None
    assert kept.bytes_of(descriptor, 3 * 4096) is not None
