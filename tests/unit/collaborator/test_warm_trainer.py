"""A warm trainer that dies: what it says of itself meanwhile, and when it is started again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from federation.collaborator.warm_trainer import WarmTrainer
from federation.confinement.handle import TrainerSettings
from federation.confinement.sandbox import SandboxMode
from federation.errors import TaskError
from federation.testing.clock import FakeClock
from federation.v1 import trainer_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from federation.confinement.handle import TrainerHandle


TRAINER = """
import os, pathlib, socket, sys
from federation.runtime.framing import BlockingFrames
from federation.v1 import trainer_pb2 as pb

answers = {"prepare": "prepared", "train": "trained", "evaluate": "evaluated", "end": "done"}
frames = BlockingFrames(socket.socket(fileno=int(sys.argv[-1])))
while (order := frames.receive(pb.TrainerOrder)) is not None:
    kind = order.WhichOneof("message")
    if kind in pathlib.Path("deadly").read_text().split():
        os._exit(3)
    answer = pb.TrainerAnswer(order=order.order)
    getattr(answer, answers[kind]).SetInParent()
    frames.send(answer)
    if kind == "end":
        break
"""
"""Dies of every order whose kind its workspace's file ``deadly`` names."""


@dataclass
class Scene:
    """A trainer, and what was heard of it.

    Attributes:
        folder: its workspace.
        trainer: starts processes.
        clock: times its pauses.
        deaths: so far.
    """

    folder: Path
    trainer: WarmTrainer
    clock: FakeClock
    deaths: int = 0

    def note_death(self) -> None:
        self.deaths += 1

    def deadly(self, *kinds: str) -> None:
        """Let trainers die of orders of these kinds from now on, and of no other."""
        (self.folder / "deadly").write_text(" ".join(kinds))

    async def train(self) -> object:
        return await self.trainer.do("train", _train)

    async def evaluate(self) -> object:
        return await self.trainer.do("evaluate", _evaluate)

    async def pausing(self, asked: asyncio.Task[object]) -> None:
        """Return once what was asked waits for a pause to pass."""
        waiting = asyncio.create_task(self.clock.until_waiting())
        await asyncio.wait({waiting, asked}, return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done(), asked.exception()


async def _train(handle: TrainerHandle) -> object:
    return await handle.train(trainer_pb2.RunTraining(), timeout_s=60.0)


async def _evaluate(handle: TrainerHandle) -> object:
    return await handle.evaluate(trainer_pb2.RunEvaluation(), timeout_s=60.0)


@pytest.fixture
async def make_scene(tmp_path: Path) -> AsyncIterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(max_deaths: int) -> Scene:
        folder = tmp_path / "workspace"
        folder.mkdir()
        trainer = WarmTrainer(
            settings=TrainerSettings(
                name="dying",
                folder=tmp_path / "trainer",
                log=tmp_path / "log",
                workspace=folder,
                sandbox=SandboxMode.NONE,
                program=("-c", TRAINER),
            ),
            order=trainer_pb2.PrepareTrainer(),
            max_deaths=max_deaths,
            prepare_s=60.0,
            clock=FakeClock(),
            on_death=lambda: scene.note_death(),
        )
        assert isinstance(trainer.clock, FakeClock)
        scene = Scene(folder=folder, trainer=trainer, clock=trainer.clock)
        scene.deadly()
        made.append(scene)
        return scene

    yield make
    for scene in made:
        scene.trainer.kill()
        await scene.trainer.end(5.0)


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


async def test_an_order_is_given_again_once_the_pause_is_over_and_no_sooner(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(max_deaths=5)
    scene.deadly("train")
    training = asyncio.create_task(scene.train())
    await scene.pausing(training)
    scene.deadly()
    scene.clock.advance(scene.clock.asked[-1] * 0.99)
    assert scene.clock.waiting and scene.trainer.is_pausing
    assert scene.trainer.trouble == "it ended; another is started after a pause"
    scene.clock.advance(scene.clock.asked[-1])
    assert isinstance(await training, trainer_pb2.TrainingDone)
    assert scene.trainer.trouble is None


async def test_an_order_cancelled_in_a_pause_leaves_what_remains_of_it_to_the_next(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(max_deaths=5)
    scene.deadly("train")
    training = asyncio.create_task(scene.train())
    await scene.pausing(training)
    (whole,) = scene.clock.asked
    scene.clock.advance(whole / 2)
    training.cancel()
    await asyncio.gather(training, return_exceptions=True)
    assert not scene.clock.waiting and not scene.trainer.is_pausing
    evaluating = asyncio.create_task(scene.evaluate())
    await scene.pausing(evaluating)
    assert scene.clock.asked[-1] == pytest.approx(whole / 2)
    scene.clock.advance(whole)
    await evaluating


async def test_an_order_that_succeeds_is_forgiven_its_deaths(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(max_deaths=3)
    for _ in range(2):
        scene.deadly("train")
        training = asyncio.create_task(scene.train())
        await scene.pausing(training)
        scene.deadly()
        scene.clock.advance(1.0)
        await training
    assert scene.deaths == 4
    assert len(scene.clock.asked) == 2 and all(delay <= 1.0 for delay in scene.clock.asked)


async def test_an_evaluation_that_succeeds_does_not_forgive_deaths_in_training(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(max_deaths=3)
    scene.deadly("train")
    training = asyncio.create_task(scene.train())
    await scene.pausing(training)
    training.cancel()
    await asyncio.gather(training, return_exceptions=True)
    scene.clock.advance(1.0)
    await scene.evaluate()
    with pytest.raises(TaskError) as caught:
        await scene.train()
    assert caught.value.permanent


async def test_an_order_is_cancelled_as_its_pause_begins_and_no_other_trainer_is_started(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(max_deaths=5)
    scene.deadly("train")
    training = asyncio.create_task(scene.train())
    scene.trainer.on_pause = training.cancel
    with pytest.raises(asyncio.CancelledError):
        await training
    assert scene.deaths == 2
    assert not scene.clock.waiting
