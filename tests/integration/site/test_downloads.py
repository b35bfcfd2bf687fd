"""Getting models and bundles while the line is being cut: over real channels, without a process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from envoy import fetching
from envoy.attendance import Attendance, EpochFile
from federation.collaborator.downloads import Downloads
from federation.collaborator.exchange import Exchange
from federation.collaborator.link import Link, LinkHolder
from federation.names import (
    Epoch,
    ExperimentId,
    FederationName,
    Role,
    aggregator_server_name,
    director_server_name,
)
from federation.runtime.clock import SystemClock
from federation.telemetry.metrics import Metrics
from federation.testing.clock import FakeClock
from federation.transport.channels import open_channel
from federation.transport.methods import Stub
from federation.v1 import aggregator_pb2, director_pb2
from federation.wire.chunks import CHUNK_BYTES, FIRST_CHUNK_BYTES
from federation.wire.payloads import payload_from_proto

if TYPE_CHECKING:
    from pathlib import Path

EXPERIMENT = ExperimentId("trial-00000001")
CARE = FederationName("care")
AGGREGATOR = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"]
DIRECTOR = director_pb2.DESCRIPTOR.services_by_name["Director"]


class Guest:
    """An envoy's site that offers nothing; implements `envoy.attendance.Member`."""

    def offers(self) -> director_pb2.ShardOffers:
        return director_pb2.ShardOffers()

    def running(self) -> list[str]:
        return []

    def standing(self) -> list[director_pb2.AttendRequest]:
        return []

    def assigned(self, assignment: director_pb2.Assignment) -> None:
        raise AssertionError(assignment)

    def withdrawn(self, withdrawal: director_pb2.Withdrawal) -> None:
        raise AssertionError(withdrawal)

    def delivered(self, request: director_pb2.AttendRequest) -> None:
        pass


async def test_a_cut_model_is_fetched_on_over_the_next_line_as_it_is_up(
    make_trial: Any, aggregator_of: Any, pki: Any, tmp_path: Path
) -> None:
    trial, clock, links = make_trial(elements=CHUNK_BYTES), FakeClock(), LinkHolder()
    aggregator = await aggregator_of(trial)
    downloads = Downloads(
        experiment=EXPERIMENT,
        exchange=Exchange(tmp_path / "exchange"),
        spec=trial.spec,
        links=links,
        metrics=Metrics(),
        clock=clock,
    )
    task = aggregator.task(trial.first_model, inline=False)
    aggregator.cut_pull_after = 2 * CHUNK_BYTES
    tls = pki.issue(Role.ENVOY, "north")
    channel = open_channel(aggregator.address, server_name=aggregator_server_name(CARE, EXPERIMENT), tls=tls)

    def connect(epoch: int) -> None:
        links.set(Link(stub=Stub(channel, AGGREGATOR), call=None, epoch=Epoch(epoch)))  # type: ignore[arg-type]

    connect(1)
    model = payload_from_proto(task.payloads[0], with_digest=True)
    fetch = asyncio.create_task(downloads.model(model, {}))
    try:
        await asyncio.wait_for(clock.until_waiting(), 30)
        connect(2)
        path = await asyncio.wait_for(fetch, 30)
    finally:
        fetch.cancel()
        await channel.close()
    assert path.read_bytes() == trial.first_model
    assert aggregator.pulls == [0, FIRST_CHUNK_BYTES + 2 * CHUNK_BYTES]
    assert clock.monotonic() == 0 and clock.waiting == 0


async def test_a_cut_bundle_is_fetched_on_in_the_next_session_as_it_is_up(
    make_trial: Any, director: Any, pki: Any, tmp_path: Path
) -> None:
    trial, clock, folder = make_trial(), FakeClock(), tmp_path / "fetched"
    folder.mkdir()
    tls = pki.issue(Role.ENVOY, "north")
    attendance = Attendance(
        open_channel=lambda: open_channel(director.address, server_name=director_server_name(CARE), tls=tls),
        make_stub=lambda channel: Stub(channel, DIRECTOR),
        member=Guest(),
        epochs=EpochFile(tmp_path / "director.json"),
        clock=SystemClock(),
    )
    director.bundle, director.cut_bundle_after = trial.archive.read_bytes(), 300
    attending = asyncio.create_task(attendance.run())
    session = await director.next_session()
    fetch = asyncio.create_task(
        fetching.fetch(attendance.director, EXPERIMENT, trial.manifest, folder, clock=clock, metrics=Metrics())
    )
    try:
        await asyncio.wait_for(clock.until_waiting(), 30)
        session.cut()
        await director.next_session()
        await asyncio.wait_for(fetch, 30)
    finally:
        fetch.cancel()
        attending.cancel()
        await asyncio.gather(attending, fetch, return_exceptions=True)
    assert (folder / "bundle.zip").read_bytes() == director.bundle
    assert director.fetches == [0, 512]
    assert clock.monotonic() == 0 and clock.waiting == 0
