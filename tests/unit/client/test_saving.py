"""Where what the command writes goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from federation.client.saving import target_of
from federation.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_taken_as_it_is_and_a_folder_gets_one_of_the_name(tmp_path: Path) -> None:
    assert target_of(f"{tmp_path}/model", "best.safetensors") == tmp_path / "model"
    assert target_of(str(tmp_path), "best.safetensors") == tmp_path / "best.safetensors"


def test_what_ends_like_a_folder_is_made_one(tmp_path: Path) -> None:
    assert target_of(f"{tmp_path}/models/may/", "best.safetensors") == tmp_path / "models" / "may" / "best.safetensors"
    assert (tmp_path / "models" / "may").is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*/file: File exists"):
        target_of(f"{tmp_path}/file/", "best.safetensors")
