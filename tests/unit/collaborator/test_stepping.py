"""A site makes the next model from the one it holds and a step, and believes the result for its digest only."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.collaborator.downloads import Downloads
from federation.collaborator.exchange import Exchange
from federation.collaborator.link import Link, LinkHolder
from federation.collaborator.tasks import StepOrder
from federation.names import Digest, Epoch, ExperimentId, PayloadName
from federation.plan import ExperimentSpec, Plan, tensor_rows
from federation.storage.encoded import RoleOf
from federation.storage.memory import MemoryBytes, MemoryModel, MemoryWriter
from federation.storage.steps import apply_step, write_step
from federation.telemetry.metrics import Metrics
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec
from federation.tensors.digest import payload_digest
from federation.testing.clock import FakeClock
from federation.v1 import aggregator_pb2 as pb
from federation.v1 import tensors_pb2
from federation.wire.payloads import Payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="weight", dtype=DType.FLOAT32, shape=(400,)),
        TensorSpec(name="mean", dtype=DType.FLOAT32, shape=(4,), role=TensorRole.BUFFER),
    ]
)
SPEC = ExperimentSpec(name="trial", shard="s", plan=Plan(downlink="rand_k:0.1"), tensors=tensor_rows(SCHEMA))


def model(seed: int) -> MemoryModel:
    rng = np.random.default_rng(seed)
    return MemoryModel.of(SCHEMA, {row.name: rng.normal(size=row.shape).astype(np.float32) for row in SCHEMA})


def whole(model: MemoryModel) -> bytes:
    data = bytearray(model.nbytes)
    model.pread_into(0, data)
    return bytes(data)


class Story:
    """A model, the next one, and the task that brings it."""

    def __init__(self) -> None:
        start, new, step = model(0), model(1), bytearray()
        write_step(model=new, held=start, plan=SPEC.plan, round_number=1, sink=MemoryBytes(step))
        source = RoleOf(new, TensorRole.BUFFER)
        buffers = bytearray(source.nbytes)
        source.pread_into(0, buffers)
        writer = MemoryWriter(SCHEMA)
        apply_step(
            held=start, step=MemoryBytes(step), buffers=MemoryBytes(buffers), downlink="rand_k:0.1", writer=writer
        )
        self.start, self.next = whole(start), whole(writer.reader())
        self.step, self.buffers = bytes(step), bytes(buffers)
        self.first, self.second = describe("model", self.start), describe("model", self.next)
        self.order = StepOrder(
            change=replace(describe("step", self.step), from_digest=self.first.digest),
            buffers=describe("buffers", self.buffers),
        )

    def inline(self, *parts: bytes) -> dict[bytes, bytes]:
        return {payload_digest(part): part for part in parts}


def describe(name: str, data: bytes) -> Payload:
    return Payload(
        name=PayloadName(name), schema_digest=SCHEMA.digest, encoded_bytes=len(data), digest=payload_digest(data)
    )


class Server:
    """The aggregator's end of `PullModel`, as a stub shows it."""

    def __init__(self) -> None:
        self.offered: dict[bytes, bytes] = {}
        self.pulled: list[bytes] = []

    @asynccontextmanager
    async def server_stream(self, method: str, request: pb.PullModelRequest, **_: object) -> AsyncIterator[Any]:
        assert method == "PullModel"
        self.pulled.append(request.digest)
        yield self._replies(self.offered[request.digest])

    async def _replies(self, data: bytes) -> AsyncIterator[pb.PullModelReply]:
        yield pb.PullModelReply(chunk=tensors_pb2.Chunk(offset=0, data=data))


def downloads(folder: Path, server: Server | None = None) -> Downloads:
    links = LinkHolder()
    links.set(Link(stub=server, call=None, epoch=Epoch(1)))  # type: ignore[arg-type]  # a stub, for what is asked of it
    return Downloads(
        experiment=ExperimentId("trial-00000001"),
        exchange=Exchange(folder / "exchange"),
        spec=SPEC,
        links=links,
        metrics=Metrics(),
        clock=FakeClock(),
    )


async def test_the_next_model_is_made_from_the_one_held_and_the_step(tmp_path: Path) -> None:
    story, fetch = Story(), downloads(tmp_path)
    await fetch.model(story.first, story.inline(story.start))
    path = await fetch.model(story.second, story.inline(story.step, story.buffers), story.order)
    assert path.read_bytes() == story.next
    assert fetch.exchange.held_model(Digest(payload_digest(story.next))) == path
    assert fetch.exchange.held_model(Digest(payload_digest(story.start))) is not None


async def test_a_restarted_collaborator_finds_the_model_before_in_its_folder(tmp_path: Path) -> None:
    story = Story()
    await downloads(tmp_path).model(story.first, story.inline(story.start))
    path = await downloads(tmp_path).model(story.second, story.inline(story.step, story.buffers), story.order)
    assert path.read_bytes() == story.next


def tampered(fetch: Downloads, story: Story) -> None:
    path = fetch.exchange.held_model(Digest(payload_digest(story.start)))
    assert path is not None
    path.write_bytes(story.start[:-1] + b"\x7f")


def truncated(fetch: Downloads, story: Story) -> None:
    path = fetch.exchange.held_model(Digest(payload_digest(story.start)))
    assert path is not None
    path.write_bytes(story.start[:-1])


def linked(fetch: Downloads, story: Story) -> None:
    path = fetch.exchange.held_model(Digest(payload_digest(story.start)))
    assert path is not None
    path.unlink()
    path.symlink_to("/etc/hostname")


def untouched(fetch: Downloads, story: Story) -> None:
    fetch.exchange.keep_model(fetch.exchange.free_model_slot(), Digest(b"x" * 32))
    fetch.exchange.keep_model(fetch.exchange.free_model_slot(), Digest(b"y" * 32))


@pytest.mark.parametrize("spoil", [tampered, truncated, linked, untouched])
async def test_without_the_model_before_the_next_is_fetched_whole(tmp_path: Path, spoil: Any) -> None:
    """What a trainer did to the model it was given, or a lost file, costs a download and nothing else."""
    story, server = Story(), Server()
    fetch = downloads(tmp_path, server)
    await fetch.model(story.first, story.inline(story.start))
    spoil(fetch, story)
    server.offered = story.inline(story.next)
    path = await fetch.model(story.second, story.inline(story.step, story.buffers), story.order)
    assert path.read_bytes() == story.next
    assert server.pulled == [payload_digest(story.next)]


async def test_a_step_that_is_none_is_answered_by_fetching_the_model_whole(tmp_path: Path) -> None:
    story, server, bad = Story(), Server(), b"no step at all"
    fetch = downloads(tmp_path, server)
    order = replace(story.order, change=replace(describe("step", bad), from_digest=story.first.digest))
    await fetch.model(story.first, story.inline(story.start))
    server.offered = story.inline(story.next)
    path = await fetch.model(story.second, story.inline(bad, story.buffers), order)
    assert path.read_bytes() == story.next
    assert server.pulled == [payload_digest(story.next)]
