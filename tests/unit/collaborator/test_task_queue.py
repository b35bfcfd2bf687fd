"""What becomes of the kept update as its verdict or its refusal is heard, with work that notes what it is told."""

from __future__ import annotations

import asyncio
from typing import Any

from federation.collaborator.ordering import BEGINNING
from federation.collaborator.task_queue import TaskQueue
from federation.errors import Refusal
from federation.names import Attempt, RoundNumber
from federation.storage.retained import RetainedUpdate
from federation.v1 import aggregator_pb2 as pb


class NotingWork:
    """Keeps an update and notes what is said of it."""

    shard = None

    def __init__(self) -> None:
        self.retained: RetainedUpdate | None = kept(1)
        self.noted: list[tuple[str, int]] = []

    async def prepare(self, base: object) -> None:
        pass

    def note_admitted(self, update: RetainedUpdate) -> None:
        self.noted.append(("admitted", update.round))

    def note_refusal(self, update: RetainedUpdate, refusal: Refusal | None, text: str) -> None:
        self.noted.append(("refused", update.round))

    async def settle(self, *, counted: bool) -> None:
        assert self.retained is not None
        self.noted.append(("counted" if counted else "given up", self.retained.round))
        self.retained = None


class NoState:
    def save(self, progress: object, *, durable: bool) -> None:
        pass


def kept(number: int) -> RetainedUpdate:
    header = pb.UpdateHeader(round=number, attempt=1, update_id=bytes([number]))
    return RetainedUpdate(round=RoundNumber(number), attempt=Attempt(1), header=header.SerializeToString(), files=())


def queue_of(work: Any) -> TaskQueue:
    nothing: Any = None
    return TaskQueue(
        spec=nothing, plan_digest=nothing, initial_model=nothing, work=work, links=nothing, state=NoState(),  # type: ignore[arg-type]
        progress=BEGINNING, on_round=lambda _: None,
    )  # fmt: skip


async def settled(queue: TaskQueue) -> None:
    """Return once the queue has done all that it heard."""
    running = asyncio.create_task(queue.run(None))
    for _ in range(10):
        await asyncio.sleep(0)
    assert queue.is_ready and not queue._waiting
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def refused(number: int) -> pb.UpdateResult:
    return pb.UpdateResult(update_id=bytes([number]), reason=Refusal.NORM.value)


async def test_a_refusal_that_a_task_overtook_does_not_give_up_the_update_that_is_kept_since() -> None:
    work = NotingWork()
    queue = queue_of(work)
    queue.post_refused(refused(1))
    work.retained = kept(2)  # what was asked before it trained meanwhile
    await settled(queue)
    assert work.noted == [("refused", 1)]
    assert work.retained == kept(2)


async def test_an_update_that_was_sent_twice_is_not_refused_after_it_counted() -> None:
    work = NotingWork()
    queue = queue_of(work)
    queue.post_verdict(pb.Verdict(round=1, attempt=1, update_id=b"\x01", epoch=1, counted=True))
    queue.post_refused(refused(1))
    await settled(queue)
    assert work.noted == [("admitted", 1), ("counted", 1)]
