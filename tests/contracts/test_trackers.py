"""What every tracker does: starts, shows rounds, ends, and leaves something durable."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from federation.errors import ConfigurationError
from federation.names import Epoch, RoundNumber
from federation.rounds.history import RoundRecord
from federation.tracking import Tracker, load_tracker

if TYPE_CHECKING:
    from pathlib import Path

NEEDS = {"csv": None, "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
RUN: dict[str, Any] = {
    "name": "digits",
    "spec": {"plan": {"rounds": 2, "best": {"metric": "loss"}}},
    "sites": 3,
    "partition": "",
}


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=RoundNumber(number), epoch=Epoch(1), started_at=1e9, seconds=1.0, metrics={"loss": 1.0 / number},
        train_metrics={"loss": 2.0}, model_digest="ab",
    )  # fmt: skip


@pytest.mark.parametrize("name", NEEDS)
def test_a_tracker_keeps_what_it_was_shown(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = NEEDS[name]
    if needed is not None:
        pytest.importorskip(needed)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = load_tracker(f"{name}:{tmp_path / 'kept'}")
    assert isinstance(tracker, Tracker)
    tracker.start(RUN)
    for number in (1, 2):
        tracker.round(record(number))
    tracker.end("completed")
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "kept")) > 0


@pytest.mark.parametrize("name", [name for name, needed in NEEDS.items() if needed])
def test_a_tracker_whose_package_is_missing_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'federation\["):
        load_tracker(f"{name}:{tmp_path}").start(RUN)
