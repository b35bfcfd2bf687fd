"""What only some stores can do wrong; what all promise is in tests/contracts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError, StorageError
from federation.names import ExperimentId
from federation.storage.artifacts import FsspecStore

if TYPE_CHECKING:
    from pathlib import Path

EXPERIMENT = ExperimentId("digits-abcd1234")


def test_an_unknown_scheme_is_the_operators_to_mend() -> None:
    with pytest.raises(ConfigurationError, match="nonsense://place"):
        FsspecStore("nonsense://place")


def test_a_missing_driver_is_the_operators_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ConfigurationError, match="Install s3fs"):
        FsspecStore("s3://bucket/prefix")


def test_a_folder_keeps_artifacts_as_plain_files(tmp_path: Path) -> None:
    store = FsspecStore(tmp_path / "store")
    with store.create(EXPERIMENT, "a.bin") as writer:
        writer.write(b"abc")
        writer.commit()
    assert (tmp_path / "store" / EXPERIMENT / "a.bin").read_bytes() == b"abc"
    assert os.listdir(tmp_path / "store" / EXPERIMENT) == ["a.bin"]


def test_a_file_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StorageError):
        FsspecStore(tmp_path / "store").create(EXPERIMENT, "a.bin")
