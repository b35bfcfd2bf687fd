"""What a task queue hears and says while its trainer is at a task that it cannot be called away from."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from federation.collaborator.ordering import BEGINNING
from federation.collaborator.task_queue import TaskQueue
from federation.names import Digest, Epoch, RoundNumber
from federation.plan import ExperimentSpec, Plan, tensor_rows
from federation.tensors import DType, TensorSchema, TensorSpec
from federation.v1 import aggregator_pb2 as pb
from federation.v1 import tensors_pb2, trainer_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federation.collaborator.tasks import TaskOrder

SCHEMA = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(4,))])
SPEC = ExperimentSpec(name="trial", shard="numbers", plan=Plan(rounds=9), tensors=tensor_rows(SCHEMA))
FIRST = Digest(b"m" * 32)
TRAIN, EVALUATE = pb.TASK_KIND_TRAIN, pb.TASK_KIND_EVALUATE


class BusyWork:
    """A trainer that is at each train task until it may end."""

    retained = None

    def __init__(self) -> None:
        self.stage = "training"
        self.trainer = self
        self.shard = trainer_pb2.TrainerPrepared(train_examples=5, validation_examples=2)
        self.done: list[str] = []
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()

    @property
    def is_interruptible(self) -> bool:
        return self.stage != "training"

    @property
    def is_pausing(self) -> bool:
        return self.stage == "pausing"

    def is_fetching(self, order: TaskOrder) -> bool:
        return self.stage in ("fetching", "pausing")

    async def prepare(self, base: object) -> None:
        pass

    async def train(self, order: TaskOrder) -> None:
        self.done.append(f"train {order.asking}")
        self.began.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.done[-1] += ", interrupted"
            raise

    async def evaluate(self, order: TaskOrder) -> pb.EvaluationResult:
        self.done.append(f"evaluate {order.asking.round}")
        return pb.EvaluationResult(round=order.asking.round)

    def asked_again(self) -> None:
        pass


class Said:
    """Keeps what the site said, over a link that is always there."""

    current = "a link"

    def __init__(self) -> None:
        self.requests: list[pb.ParticipateRequest] = []
        self.heard = asyncio.Event()

    async def say(self, request: pb.ParticipateRequest) -> None:
        self.requests.append(request)
        if request.HasField("evaluated"):
            self.heard.set()

    async def lost(self) -> None:
        await asyncio.Event().wait()


class NoState:
    def save(self, progress: object, *, durable: bool) -> None:
        pass


class Scene:
    def __init__(self) -> None:
        self.work, self.said = BusyWork(), Said()
        nothing: Any = None
        progress = type(BEGINNING)(
            epoch=Epoch(1), committed=RoundNumber(0), newest=BEGINNING.newest, settled=BEGINNING.settled
        )
        self.queue = TaskQueue(
            spec=SPEC, plan_digest=nothing, initial_model=FIRST, work=self.work, links=self.said,  # type: ignore[arg-type]
            state=NoState(), progress=progress, on_round=lambda _: None,  # type: ignore[arg-type]
        )  # fmt: skip

    def ask(self, kind: pb.TaskKind, number: int, attempt: int = 1) -> None:
        model = tensors_pb2.PayloadDescriptor(
            name="model", schema_digest=SCHEMA.digest, codec="identity", encoded_bytes=SCHEMA.nbytes, digest=FIRST
        )
        task = pb.Task(kind=kind, round=number, attempt=attempt, epoch=1, payloads=[model], deadline_s=5.0)
        self.queue.post_task(task)

    async def train(self, number: int) -> None:
        """Ask to train, and return once the trainer is at it."""
        self.ask(TRAIN, number)
        await self.work.began.wait()

    async def ready(self) -> tuple[int, int]:
        """Begin a new session; return which task the site says it is at."""
        await self.queue.announce()
        ready = self.said.requests[-1].ready
        assert (ready.train_examples, ready.validation_examples) == (5, 2)
        return ready.work_round, ready.work_attempt


@pytest.fixture(name="scene")
async def _scene() -> AsyncIterator[Scene]:
    scene = Scene()
    running = asyncio.create_task(scene.queue.run(None))
    yield scene
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_new_session_begins_with_the_word_which_task_the_site_is_at(scene: Scene) -> None:
    await scene.train(3)
    assert await scene.ready() == (3, 1)


async def test_a_site_that_has_ended_its_task_says_that_it_is_at_none(scene: Scene) -> None:
    await scene.train(1)
    scene.ask(EVALUATE, 1)
    scene.work.may_end.set()
    await scene.said.heard.wait()
    assert await scene.ready() == (0, 0)


async def test_a_site_is_at_no_task_before_it_was_asked(scene: Scene) -> None:
    await asyncio.sleep(0)
    assert await scene.ready() == (0, 0)


async def test_a_site_that_is_late_does_not_begin_to_train_for_a_round_that_is_evaluated_already(scene: Scene) -> None:
    await scene.train(1)
    scene.ask(TRAIN, 2)
    scene.ask(EVALUATE, 2)
    scene.work.may_end.set()
    await scene.said.heard.wait()
    assert scene.work.done == ["train round 1", "evaluate 2"]


async def test_a_round_that_was_evaluated_is_trained_for_if_it_is_asked_once_more(scene: Scene) -> None:
    """An aggregator that was ended while the round was evaluated is in it again when it has started."""
    await scene.train(1)
    scene.ask(TRAIN, 2)
    scene.ask(EVALUATE, 2)
    scene.ask(TRAIN, 2)
    scene.work.began.clear()
    scene.work.may_end.set()
    await scene.work.began.wait()
    assert scene.work.done == ["train round 1", "evaluate 2", "train round 2"]


async def test_a_task_for_a_later_round_is_kept_when_an_evaluation_is_heard(scene: Scene) -> None:
    await scene.train(1)
    scene.ask(EVALUATE, 1)
    scene.ask(TRAIN, 2)
    scene.work.began.clear()
    scene.work.may_end.set()
    await scene.work.began.wait()
    assert scene.work.done == ["train round 1", "train round 2"]


STAGES = {
    "fetching": "train round 1, interrupted",
    "pausing": "train round 1, interrupted",
    "training": "train round 1",
    "sending": "train round 1",
}


@pytest.mark.parametrize("stage", STAGES)
async def test_when_an_evaluation_is_heard_training_and_sending_go_on_and_fetching_and_pausing_do_not(
    scene: Scene, stage: str
) -> None:
    scene.work.stage = stage
    await scene.train(1)
    scene.ask(EVALUATE, 1)
    if "interrupted" not in STAGES[stage]:
        scene.work.may_end.set()
    await scene.said.heard.wait()
    assert scene.work.done == [STAGES[stage], "evaluate 1"]


@pytest.mark.parametrize("asked", ["evaluate", "train"])
async def test_a_trainer_that_dies_of_a_task_nobody_wants_any_more_is_not_tried_again(scene: Scene, asked: str) -> None:
    await scene.train(1)
    scene.work.began.clear()
    if asked == "evaluate":
        scene.ask(EVALUATE, 1)
    else:
        scene.ask(TRAIN, 2)
    scene.work.stage = "pausing"
    scene.queue.trainer_paused()
    if asked == "evaluate":
        await scene.said.heard.wait()
        assert scene.work.done == ["train round 1, interrupted", "evaluate 1"]
    else:
        await scene.work.began.wait()
        assert scene.work.done == ["train round 1, interrupted", "train round 2"]


async def test_a_task_that_is_wanted_waits_for_the_next_trainer(scene: Scene) -> None:
    await scene.train(1)
    scene.work.stage = "pausing"
    scene.queue.trainer_paused()
    scene.ask(TRAIN, 1)
    await asyncio.sleep(0)
    scene.work.stage = "training"
    scene.ask(EVALUATE, 1)
    scene.work.may_end.set()
    await scene.said.heard.wait()
    assert scene.work.done == ["train round 1", "evaluate 1"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_stop_does_not_wait_for_the_pause_after_a_death(scene: Scene, when: str) -> None:
    """Whether it is asked for in the pause, or while the trainer that dies then is at its task."""
    await scene.train(1)
    if when == "after":
        scene.work.stage = "pausing"
    closing = asyncio.create_task(scene.queue.close())
    await asyncio.sleep(0)
    if when == "before":
        assert scene.work.done == ["train round 1"]
        scene.work.stage = "pausing"
        scene.queue.trainer_paused()
    await closing
    assert scene.work.done == ["train round 1, interrupted"]
