from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError, StorageError
from federation.pki.files import read, write_private, write_public

if TYPE_CHECKING:
    from pathlib import Path


def test_a_private_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_replacing_an_open_file_makes_it_private(tmp_path: Path) -> None:
    write_public(tmp_path / "key", b"old")
    write_private(tmp_path / "key", b"secret", force=True)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_does_not_write_through_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="exists"):
        write_private(tmp_path / "key", b"secret")
    write_private(tmp_path / "key", b"secret", force=True)
    assert not (tmp_path / "elsewhere").exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(StorageError, match="key"):
        write_private(tmp_path / "key", b"secret", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"signing key .*none"):
        read(tmp_path / "none", "signing key")
