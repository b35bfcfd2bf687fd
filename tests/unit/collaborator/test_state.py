from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from federation.collaborator.ordering import BEGINNING, Asking, Progress
from federation.collaborator.state import StateFile
from federation.errors import StorageError
from federation.names import Attempt, Epoch, RoundNumber

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("durable", [True, False])
def test_progress_comes_back_as_it_was_saved(tmp_path: Path, *, durable: bool) -> None:
    progress = Progress(
        epoch=Epoch(3),
        committed=RoundNumber(4),
        newest=Asking(round=RoundNumber(6), attempt=Attempt(2)),
        settled=Asking(round=RoundNumber(5), attempt=Attempt(1)),
    )
    StateFile(tmp_path / "state.json").save(progress, durable=durable)
    assert StateFile(tmp_path / "state.json").load() == progress


def test_a_site_without_state_begins_at_the_beginning(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "state.json").load() == BEGINNING


@pytest.mark.parametrize("text", ["", "[]", '{"epoch": -1}', '{"epoch": "1", "committed": 0}'])
def test_state_that_makes_no_sense_is_an_error_and_not_a_fresh_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StorageError, match="rejoin"):
        StateFile(tmp_path / "state.json").load()
