"""Sending an update while the line is being cut or the aggregator starts again: over real channels, no process."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.collaborator.link import Link, LinkHolder
from federation.collaborator.uploads import Uploads
from federation.errors import LimitError, Refusal, UpdateRejectedError
from federation.names import (
    Attempt,
    Digest,
    Epoch,
    ExperimentId,
    FederationName,
    Role,
    RoundNumber,
    aggregator_server_name,
)
from federation.runtime.clock import SystemClock
from federation.storage.retained import RetainedFile, RetainedUpdate
from federation.telemetry.metrics import Metrics
from federation.tensors.digest import payload_digest
from federation.testing.clock import FakeClock
from federation.transport.channels import open_channel
from federation.transport.methods import Stub
from federation.v1 import aggregator_pb2
from federation.wire.payloads import DELTA, Payload
from federation.wire.updates import UPDATE_ID_BYTES, UpdateAnnouncement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import grpc

    from federation.errors import FederationError

SERVICE = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"]
EXPERIMENT = ExperimentId("trial-00000001")


def kept_update(folder: Path, trial: Any) -> RetainedUpdate:
    """Write an update as a trainer would, and return what is kept of it."""
    data = np.ones(8, np.float32).tobytes()
    (folder / "delta.bin").write_bytes(data)
    payload = Payload(name=DELTA, schema_digest=trial.spec.schema_.parameters.digest, encoded_bytes=len(data))
    header = UpdateAnnouncement(
        experiment=EXPERIMENT,
        update_id=bytes(range(UPDATE_ID_BYTES)),
        attempt=Attempt(1),
        epoch=Epoch(1),
        round=RoundNumber(1),
        payloads=(payload,),
        examples=8,
        metrics={},
        train_seconds=0.0,
        model_digest=Digest(bytes(32)),
    ).to_bytes()
    file = RetainedFile(payload=DELTA, path=folder / "delta.bin", nbytes=len(data), digest=payload_digest(data))
    return RetainedUpdate(round=RoundNumber(1), attempt=Attempt(1), header=header, files=(file,))


async def test_an_update_goes_over_the_next_line_if_this_one_ends_before_it_is_up_again(
    make_trial: Any, aggregator_of: Any, pki: Any, tmp_path: Path
) -> None:
    """An aggregator is killed as the update is ready: the upload begins before the session knows of it."""
    trial = make_trial()
    aggregator, update = await aggregator_of(trial), kept_update(tmp_path, trial)
    links = LinkHolder()
    uploads = Uploads(links=links, metrics=Metrics(), clock=SystemClock(), schemas={})
    name = aggregator_server_name(FederationName("care"), EXPERIMENT)

    def dial(port: int, epoch: int) -> grpc.aio.Channel:
        channel = open_channel(f"127.0.0.1:{port}", server_name=name, tls=pki.issue(Role.ENVOY, "north"))
        stub = Stub(channel, SERVICE)
        links.set(Link(stub=stub, call=None, epoch=Epoch(epoch)))  # type: ignore[arg-type] - nothing is said here
        return channel

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        silent.setblocking(False)
        line = dial(silent.getsockname()[1], 1)
        pushing = asyncio.create_task(uploads.push(update))
        with (await asyncio.get_running_loop().sock_accept(silent))[0]:
            links.set(None)
            await line.close()
    line = dial(aggregator.port, 2)
    try:
        received = await aggregator.next_update()
        await pushing
    finally:
        pushing.cancel()
        await line.close()
    assert received.header.epoch == 2
    assert received.digests == [update.files[0].digest]


class Sending:
    """An update on its way to an aggregator that refuses it at first; time stands still unless the test moves it."""

    def __init__(self, aggregator: Any, tls: Any) -> None:
        self.aggregator = aggregator
        self.clock = FakeClock()
        self.links = LinkHolder()
        self.uploads = Uploads(links=self.links, metrics=Metrics(), clock=self.clock, schemas={})
        name = aggregator_server_name(FederationName("care"), EXPERIMENT)
        self.channel = open_channel(aggregator.address, server_name=name, tls=tls)
        self.connect(1)

    def connect(self, epoch: int) -> None:
        """Note a session of the aggregator."""
        self.links.set(Link(stub=Stub(self.channel, SERVICE), call=None, epoch=Epoch(epoch)))  # type: ignore[arg-type]

    @asynccontextmanager
    async def refused(self, update: RetainedUpdate, refusal: FederationError) -> AsyncIterator[asyncio.Task[None]]:
        """Send `update` until it was refused once, and the sender waits for what comes next."""
        self.aggregator.refusal = refusal
        pushing = asyncio.create_task(self.uploads.push(update))
        try:
            await asyncio.wait_for(self.aggregator.has_refused.wait(), 30)
            await asyncio.wait_for(self.clock.until_waiting(), 30)
            yield pushing
        finally:
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)


@pytest.fixture
async def sending(make_trial: Any, aggregator_of: Any, pki: Any, tmp_path: Path) -> AsyncIterator[Any]:
    trial = make_trial()
    made = Sending(await aggregator_of(trial), pki.issue(Role.ENVOY, "north"))
    yield made, kept_update(tmp_path, trial)
    await made.channel.close()


NOT_YET = [
    UpdateRejectedError(Refusal.NOT_ASKED, "no update is expected from this site now"),
    UpdateRejectedError(Refusal.STALE_EPOCH, "this aggregator has epoch 2"),
]


@pytest.mark.parametrize("refusal", NOT_YET, ids=lambda refusal: refusal.refusal.value)
async def test_an_update_refused_before_it_was_asked_for_is_sent_as_it_is_asked_for(
    sending: Any, refusal: FederationError
) -> None:
    made, update = sending
    async with made.refused(update, refusal) as pushing:
        made.uploads.asked_again()
        await asyncio.wait_for(pushing, 30)
    assert made.clock.monotonic() == 0 and made.clock.waiting == 0


async def test_an_asking_that_overtakes_the_refusal_of_what_it_asks_for_is_not_missed(sending: Any) -> None:
    made, update = sending
    made.aggregator.refusal = NOT_YET[0]
    pushing = asyncio.create_task(made.uploads.push(update))
    await asyncio.wait_for(made.aggregator.upload_has_begun.wait(), 30)
    made.uploads.asked_again()
    await asyncio.wait_for(pushing, 30)
    assert made.aggregator.has_refused.is_set()
    assert made.clock.monotonic() == 0


@pytest.mark.parametrize("refusal", [*NOT_YET, LimitError("64 calls are open")], ids=lambda error: type(error).__name__)
async def test_a_refused_update_is_sent_again_over_the_next_line_as_it_is_up(
    sending: Any, refusal: FederationError
) -> None:
    made, update = sending
    async with made.refused(update, refusal) as pushing:
        made.links.set(None)
        made.connect(2)
        await asyncio.wait_for(pushing, 30)
    assert (await made.aggregator.next_update()).header.epoch == 2
    assert made.clock.monotonic() == 0 and made.clock.waiting == 0


async def test_a_busy_aggregator_is_left_alone_for_a_while_whatever_it_asks(sending: Any) -> None:
    made, update = sending
    async with made.refused(update, LimitError("64 calls are open")) as pushing:
        made.uploads.asked_again()
        made.clock.advance(0.04)  # the first delay is 0.05 s at least
        for _ in range(10):
            await asyncio.sleep(0)
        assert made.clock.waiting == 1
        made.clock.advance(0.07)
        await asyncio.wait_for(pushing, 30)
