"""A collaborator that cannot be started because there is no room for its configuration."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from envoy.spawning import CONFIG_FILE, Collaborator
from federation.errors import StorageError
from federation.names import ExperimentId
from federation.telemetry.metrics import Metrics
from federation.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path


class Config:
    """Stands for a configuration: where the process would lie, and what is written of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model_dump_json(self, indent: int) -> str:
        return "{}"


async def test_a_full_disk_is_waited_for_and_any_other_failure_of_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / CONFIG_FILE / "in the way").mkdir(parents=True)
    usual, full = os.statvfs, os.statvfs_result((4096, 4096, 1000, 10, 10, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    clock, config = FakeClock(), Config(tmp_path / "collaborator")
    collaborator = Collaborator(
        experiment=ExperimentId("trial-00000001"), folder=tmp_path, config=config, max_restarts=0,  # type: ignore[arg-type]
        clock=clock, metrics=Metrics(),
    )  # fmt: skip
    running: asyncio.Task[Any] = asyncio.create_task(collaborator.run())
    for _ in range(3):
        await clock.until_waiting()
        clock.advance(60)
    await clock.until_waiting()
    monkeypatch.setattr(os, "statvfs", usual)
    clock.advance(60)
    with pytest.raises(StorageError):
        await running
