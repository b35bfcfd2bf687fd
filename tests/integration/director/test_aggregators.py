"""Aggregators of a director: started, started again, and what they report and store."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from federation.errors import (
    FederationError,
    IdentityError,
    MalformedMessageError,
    PeerError,
    StorageError,
)
from federation.names import Role
from federation.v1 import director_pb2 as pb
from federation.v1 import tensors_pb2

from .beginnings import start


async def test_a_crashed_aggregator_is_restarted_with_the_next_epoch(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, (envoy,), process, aggregator = await start(world, make_package, make_shard, "north")
    await envoy.accept()
    await aggregator.roster_of("north")
    process.end("killed by signal 9")
    second = await world.launcher.next()
    assert second.order.epoch == 2
    newer = await world.supervise(second)
    await newer.read_kind("welcome")
    assert [row.site for row in (await newer.read_kind("roster")).sites] == ["north"]
    moved = await envoy.read_kind("assignment")
    assert moved.aggregator_address == "localhost:4002"
    with_text = await world.watch_until(experiment, lambda event: event.kind == "audit")
    assert "epoch 1 ended: killed by signal 9" in with_text[-1].text


async def test_an_owner_is_told_once_why_no_aggregator_can_be_started_and_it_is_tried_again(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    world.launcher.failures = [StorageError("the work folder: no room for 400 bytes") for _ in range(3)]
    await world.attend("north", make_shard())
    experiment = await make_package().submit(world)
    aggregator = await world.supervise(await world.launcher.next())
    await aggregator.welcomed()
    await aggregator.end()
    seen = await world.until_state(experiment, pb.EXPERIMENT_STATE_COMPLETED)
    assert [event.text for event in seen if event.kind == "audit"] == [
        "its aggregator cannot be looked after, and that is tried again: the work folder: no room for 400 bytes"
    ]


async def test_an_aggregator_of_an_older_epoch_is_told_to_stop(world: Any, make_package: Any, make_shard: Any) -> None:
    _, _, process, older = await start(world, make_package, make_shard, "north")
    process.end()
    await world.launcher.next()
    await older.report(1, 1)
    while (message := await older.read()).WhichOneof("message") != "stop":
        pass
    assert message.stop.outcome == "superseded"
    again = await world.supervise(process, epoch=1)
    assert (await again.read_kind("stop")).outcome == "superseded"
    with pytest.raises(PeerError, match="was never granted"):
        await (await world.supervise(process, epoch=7)).read()


async def test_an_aggregator_that_keeps_crashing_fails_the_experiment(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    await world.attend("north", make_shard())
    experiment = await make_package().submit(world)
    for epoch in (1, 2, 3):
        process = await world.launcher.next()
        assert process.order.epoch == epoch
        process.end("exited with 1")
    events = await world.until_state(experiment, pb.EXPERIMENT_STATE_FAILED)
    assert "ended 3 times without finishing a round; last: exited with 1" in events[-1].transition.reason


async def test_an_aggregator_without_room_on_its_disk_is_started_again_as_long_as_it_takes(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    await world.attend("north", make_shard())
    experiment = await make_package().submit(world)
    for _ in range(5):  # two restarts are what a crash has
        (await world.launcher.next()).end_without_room()
    aggregator = await world.supervise(await world.launcher.next())
    await aggregator.welcomed()
    await aggregator.end()
    seen = await world.until_state(experiment, pb.EXPERIMENT_STATE_COMPLETED)
    (text,) = [event.text for event in seen if event.kind == "audit"]
    assert text.endswith("no room for 400 bytes; it is started again until there is room")


async def test_reports_and_statuses_become_the_experiment_and_repeat_without_harm(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, _, process, aggregator = await start(world, make_package, make_shard, "north")
    for _ in range(2):
        await aggregator.report(5, 1)
        assert (await aggregator.read_kind("acknowledge")).sequence == 5
    status = pb.AggregatorStatus(state="paused", reason="1 site is connected, 2 are needed")
    await aggregator.call.write(pb.SuperviseRequest(status=status))
    await world.until_state(experiment, pb.EXPERIMENT_STATE_PAUSED)
    again = await world.supervise(process)
    assert (await again.welcomed()).last_sequence == 5
    assert len((await world.experiment(experiment)).rounds) == 1


async def test_an_aggregator_speaks_for_its_own_experiment_only(world: Any, make_package: Any, make_shard: Any) -> None:
    experiment, _, _, _ = await start(world, make_package, make_shard, "north")
    call = world.stub(Role.AGGREGATOR, "other-abcdefgh").bidi("Supervise")
    hello = pb.AggregatorHello(experiment=experiment, epoch=1)
    await call.write(pb.SuperviseRequest(hello=hello))
    with pytest.raises(IdentityError, match="cannot speak for experiment"):
        await call.read()


async def test_artifacts_of_an_aggregator_appear_whole_or_not_at_all(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, _, _, _ = await start(world, make_package, make_shard, "north")
    stub = world.stub(Role.AGGREGATOR, experiment)

    async def pieces(name: str, data: bytes, digest: str) -> Any:
        artifact = pb.Artifact(name=name, bytes=len(data), digest=digest, round=2)
        yield pb.UploadArtifactRequest(artifact=artifact)
        yield pb.UploadArtifactRequest(chunk=tensors_pb2.Chunk(offset=0, data=data))

    digest = hashlib.sha256(b"history").hexdigest()
    reply = await stub.client_stream("UploadArtifact", pieces("history.json", b"history", digest))
    assert reply.artifact.round == 2
    with pytest.raises(FederationError, match="digest is"):
        await stub.client_stream("UploadArtifact", pieces("last.safetensors", b"damaged", digest))
    with pytest.raises(MalformedMessageError, match="artifact name"):
        await stub.client_stream("UploadArtifact", pieces("../x", b"history", digest))
    with pytest.raises(IdentityError, match="cannot be replaced"):
        await stub.client_stream("UploadArtifact", pieces("spec.json", b"history", digest))
    names = [item.name for item in (await world.experiment(experiment)).artifacts]
    assert names == ["history.json", "initial.safetensors", "spec.json"]
