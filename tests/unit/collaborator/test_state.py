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
        evaluated=RoundNumber(7),
    )
    StateFile(tmp_path / "state").save(progress, durable=durable)
    assert StateFile(tmp_path / "state").load() == progress


def test_a_site_without_state_begins_at_the_beginning(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "state").load() == BEGINNING


def progress_of_round(number: int) -> Progress:
    asking = Asking(round=RoundNumber(number), attempt=Attempt(1))
    return Progress(epoch=Epoch(2), committed=RoundNumber(number), newest=asking, settled=asking)


def test_the_newest_of_many_saves_is_found_by_a_later_process(tmp_path: Path) -> None:
    for number in range(1, 12):
        StateFile(tmp_path / "state").save(progress_of_round(number), durable=number == 1)
        assert StateFile(tmp_path / "state").load() == progress_of_round(number)


@pytest.mark.parametrize("cut", [1, 30, 100], ids="{} bytes written".format)
def test_a_torn_save_loses_itself_and_not_the_one_before(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "state"
    file = StateFile(path)
    for number in (1, 2, 3):
        file.save(progress_of_round(number), durable=False)
    before = path.read_bytes()
    file.save(progress_of_round(4), durable=False)
    path.write_bytes(path.read_bytes()[:cut] + before[cut:])
    assert StateFile(path).load() == progress_of_round(3)


@pytest.mark.parametrize("text", ["", "[]", '{"epoch": -1}', '{"epoch": "1", "committed": 0}'])
def test_state_that_makes_no_sense_is_an_error_and_not_a_fresh_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").write_text(text)
    with pytest.raises(StorageError, match="rejoin"):
        StateFile(tmp_path / "state").load()
