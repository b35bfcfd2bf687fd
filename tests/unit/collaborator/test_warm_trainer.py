"""A warm trainer that dies: what it says of itself meanwhile, and when it is started again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from federation.collaborator.warm_trainer import WarmTrainer
from federation.confinement.handle import TrainerSettings
from federation.confinement.sandbox import SandboxMode
from federation.errors import TaskError
from federation.testing.clock import FakeClock
from federation.v1 import trainer_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def dying(folder: Path, clock: FakeClock, on_death: Callable[[], None], *, max_deaths: int) -> WarmTrainer:
    return WarmTrainer(
        settings=TrainerSettings(
            name="dying",
            folder=folder / "trainer",
            log=folder / "log",
            workspace=folder / "workspace",
            sandbox=SandboxMode.NONE,
            program=("-c", "raise SystemExit(1)"),
        ),
        order=trainer_pb2.PrepareTrainer(),
        max_deaths=max_deaths,
        prepare_s=60.0,
        clock=clock,
        on_death=on_death,
    )


async def test_a_trainer_is_no_trouble_while_it_is_prepared_and_is_once_it_died(tmp_path: Path) -> None:
    said: list[str | None] = []
    trainer = dying(tmp_path, FakeClock(), lambda: said.append(trainer.trouble), max_deaths=2)
    assert trainer.trouble == "not started yet"
    preparing = asyncio.create_task(trainer.prepare())
    await asyncio.sleep(0)
    assert trainer.trouble is None
    with pytest.raises(TaskError):
        await preparing
    assert said == ["it ended; the next task starts another"] * 2
    await trainer.end(0.0)


async def test_a_trainer_is_started_again_at_once_and_then_after_growing_pauses(tmp_path: Path) -> None:
    clock, deaths = FakeClock(), []
    trainer = dying(tmp_path, clock, lambda: deaths.append(clock.monotonic()), max_deaths=5)
    preparing = asyncio.create_task(trainer.prepare())
    for number, most_s in ((2, 1.0), (3, 2.0), (4, 4.0)):
        await clock.until_waiting()
        assert len(deaths) == number and most_s / 2 <= clock.asked[-1] <= most_s
        clock.advance(most_s)
    with pytest.raises(TaskError) as refused:
        await preparing
    assert refused.value.permanent and deaths == [0.0, 0.0, 1.0, 3.0, 7.0]
    assert len(clock.asked) == 3  # nobody waits before he gives up
    await trainer.end(0.0)


async def test_whoever_is_cancelled_while_a_trainer_pauses_waits_no_longer(tmp_path: Path) -> None:
    clock = FakeClock()
    trainer = dying(tmp_path, clock, lambda: None, max_deaths=5)
    preparing = asyncio.create_task(trainer.prepare())
    await clock.until_waiting()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert not clock.waiting
    await trainer.end(0.0)
