"""Sending an update while the line is being cut: over real channels, without a process."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.collaborator.link import Link, LinkHolder
from federation.collaborator.uploads import Uploads
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
from federation.transport.channels import open_channel
from federation.transport.methods import Stub
from federation.v1 import aggregator_pb2
from federation.wire.payloads import DELTA, Payload
from federation.wire.updates import UPDATE_ID_BYTES, UpdateAnnouncement

if TYPE_CHECKING:
    from pathlib import Path

    import grpc

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
    uploads = Uploads(links=links, metrics=Metrics(), clock=SystemClock())
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
