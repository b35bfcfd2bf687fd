"""What a warm trainer says of itself while it is not there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from federation.collaborator.warm_trainer import WarmTrainer
from federation.confinement.handle import TrainerSettings
from federation.confinement.sandbox import SandboxMode
from federation.errors import TaskError
from federation.v1 import trainer_pb2

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_trainer_is_no_trouble_while_it_is_prepared_and_is_once_it_died(tmp_path: Path) -> None:
    said: list[str | None] = []
    trainer = WarmTrainer(
        settings=TrainerSettings(
            name="dying",
            folder=tmp_path / "trainer",
            log=tmp_path / "log",
            workspace=tmp_path / "workspace",
            sandbox=SandboxMode.NONE,
            program=("-c", "raise SystemExit(1)"),
        ),
        order=trainer_pb2.PrepareTrainer(),
        max_deaths=2,
        prepare_s=60.0,
        on_death=lambda: said.append(trainer.trouble),
    )
    assert trainer.trouble == "not started yet"
    preparing = asyncio.create_task(trainer.prepare())
    await asyncio.sleep(0)
    assert trainer.trouble is None
    with pytest.raises(TaskError):
        await preparing
    assert said == ["it ended; the next task starts another"] * 2
    await trainer.end(0.0)
