"""An experiment's life as the director leads it, with scripted envoys and aggregators over mutual TLS."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from federation.client.command import app
from federation.errors import (
    ConflictError,
    IdentityError,
    MalformedMessageError,
    NotFoundError,
    PeerError,
    StaleRoundError,
)
from federation.names import Role
from federation.v1 import director_pb2 as pb
from federation.wire.versions import PROTOCOL

from .beginnings import start

REFUSED = pb.AssignmentAnswer.ANSWER_REFUSED
PENDING = pb.AssignmentAnswer.ANSWER_PENDING


async def test_an_experiment_runs_from_submission_to_completion(world: Any, make_package: Any, make_shard: Any) -> None:
    experiment, envoys, process, aggregator = await start(world, make_package, make_shard, "north", "south")
    assignments = [await envoy.accept() for envoy in envoys]
    assert {item.aggregator_address for item in assignments} == {"localhost:4001"}
    assert assignments[0].aggregator_server_name == f"{experiment}.aggregator.test.internal"
    assert assignments[0].submitted_by == "alice"
    await aggregator.roster_of("north", "south")

    for number in (1, 2):
        await aggregator.report(number, number)
        assert (await aggregator.read_kind("acknowledge")).sequence == number
    await aggregator.end(sequence=3)
    assert (await aggregator.read_kind("acknowledge")).sequence == 3
    assert await aggregator.read() is None

    await world.until_state(experiment, pb.EXPERIMENT_STATE_COMPLETED)
    process.end("exited with 0")
    for envoy in envoys:
        assert (await envoy.read_kind("withdrawal")).experiment == experiment
    shown = await world.experiment(experiment)
    assert shown.summary.rounds_done == 2
    assert [report.round for report in shown.rounds] == [1, 2]
    assert [(part.site, part.answer, part.examples) for part in shown.sites] == [
        ("north", "accepted", 10),
        ("south", "accepted", 10),
    ]
    states = [item.state for item in shown.transitions]
    assert states == [
        pb.EXPERIMENT_STATE_SUBMITTED,
        pb.EXPERIMENT_STATE_QUEUED,
        pb.EXPERIMENT_STATE_RUNNING,
        pb.EXPERIMENT_STATE_COMPLETED,
    ]


async def test_it_waits_until_enough_sites_match(world: Any, make_package: Any, make_shard: Any) -> None:
    await world.attend("north", make_shard())
    experiment = await make_package(sites=2).submit(world)
    await world.watch_until(experiment, lambda event: "1 of the 2 it wants is online" in event.text)
    await world.attend("south", make_shard())
    assert (await world.launcher.next()).order.experiment == experiment


async def test_only_matching_sites_are_asked(world: Any, make_package: Any, make_shard: Any) -> None:
    images = await world.attend("images", make_shard(kind="images"))
    experiment, _, _, _ = await start(world, make_package, make_shard, "north")
    await world.watch_until(experiment, lambda event: event.site == "north")
    await images.leave()  # reads to the end of its session: nothing had been sent
    assert [part.site for part in (await world.experiment(experiment)).sites] == ["north"]


async def test_a_site_that_comes_late_is_asked_too(world: Any, make_package: Any, make_shard: Any) -> None:
    experiment, _, _, aggregator = await start(world, make_package, make_shard, "north")
    late = await world.attend("late", make_shard())
    assert (await late.accept()).experiment == experiment
    await aggregator.roster_of("late")


async def test_an_assignment_is_repeated_after_a_reconnect(world: Any, make_package: Any, make_shard: Any) -> None:
    _, (envoy,), _, _ = await start(world, make_package, make_shard, "north")
    first = await envoy.read_kind("assignment")
    again = await (await world.attend("north")).read_kind("assignment")
    assert first == again


async def test_the_older_session_of_an_envoy_is_told_that_it_is_superseded(world: Any, make_shard: Any) -> None:
    older = await world.attend("north", make_shard())
    await world.attend("north", make_shard())
    with pytest.raises(ConflictError, match="superseded by a newer session"):
        await older.read()


async def test_an_envoy_that_runs_what_is_over_is_told_to_withdraw(world: Any, make_package: Any) -> None:
    experiment = await make_package().submit(world)
    await world.stub(Role.USER, "alice").unary("CancelExperiment", pb.CancelExperimentRequest(experiment=experiment))
    envoy = await world.attend("north", running=(experiment, "unknown-abcdefgh"))
    texts = [await envoy.read_kind("withdrawal") for _ in range(2)]
    assert "the experiment is cancelled" in texts[0].reason
    assert "no experiment" in texts[1].reason


async def test_refusals_that_leave_too_few_sites_fail_the_experiment_with_their_reasons(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, (north, south), process, aggregator = await start(world, make_package, make_shard, "north", "south")
    await north.accept()
    assignment = await south.read_kind("assignment")
    await south.answer(assignment.experiment, PENDING, "waits for approval")
    await aggregator.roster_of("north")
    await south.answer(assignment.experiment, REFUSED, "user alice is not allowed here")
    events = await world.until_state(experiment, pb.EXPERIMENT_STATE_FAILED)
    assert "south refused: user alice is not allowed here" in events[-1].transition.reason
    while (message := await aggregator.read()).WhichOneof("message") != "stop":
        assert message is not None
    assert (await north.read_kind("withdrawal")).experiment == experiment
    process.end()


async def test_a_site_that_is_away_while_the_others_are_asked_is_waited_for(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    north, south = [await world.attend(name, make_shard()) for name in ("north", "south")]
    experiment = await make_package(sites=2).submit(world)
    process = await world.launcher.next()
    await south.leave()  # as all sites have for a moment when a director that had started it is started again
    aggregator = await world.supervise(process)
    await north.accept()
    await aggregator.welcomed()
    await aggregator.roster_of("north")
    await (await world.attend("south")).accept()
    await aggregator.roster_of("north", "south")
    assert (await world.experiment(experiment)).summary.state == pb.EXPERIMENT_STATE_RUNNING


async def test_a_site_whose_collaborator_failed_leaves_the_roster(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, (north, south), _, aggregator = await start(world, make_package, make_shard, "north", "south")
    await north.accept()
    await south.accept()
    await aggregator.roster_of("north", "south")
    await aggregator.report(1, 1)
    await aggregator.read_kind("acknowledge")
    status = pb.ParticipationStatus(experiment=experiment, state="failed", error_class="ImportError")
    await south.call.write(pb.AttendRequest(status=status))
    await aggregator.roster_of("north")
    (part,) = [part for part in (await world.experiment(experiment)).sites if part.site == "south"]
    assert (part.answer, part.reason) == ("lost", "ImportError")


async def test_cancelling_stops_the_aggregator_and_withdraws_sites_and_is_idempotent(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, (envoy,), process, aggregator = await start(world, make_package, make_shard, "north")
    await envoy.accept()
    await aggregator.roster_of("north")
    request = pb.CancelExperimentRequest(experiment=experiment, reason="wrong data")
    for _ in range(2):
        reply = await world.stub(Role.USER, "alice").unary("CancelExperiment", request)
        assert reply.state == pb.EXPERIMENT_STATE_CANCELLED
    stop = await aggregator.read_kind("stop")
    assert (stop.outcome, stop.reason) == ("cancelled", "wrong data")
    assert (await envoy.read_kind("withdrawal")).reason == "cancelled: wrong data"
    await asyncio.wait_for(process.ended, 60)  # it does not leave by itself, so it is stopped
    assert process.stopped


async def test_an_operator_releases_a_site_and_its_aggregator_learns_it_now_and_at_every_hello(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, (envoy,), process, aggregator = await start(world, make_package, make_shard, "north")
    await envoy.accept()
    await aggregator.roster_of("north")
    held = pb.QuarantinedSite(site="north", since_round=1, reason="far from the others")
    await aggregator.report(1, 1, quarantined=[held])
    await aggregator.read_kind("acknowledge")
    (part,) = (await world.experiment(experiment)).sites
    assert (part.quarantined_since, part.quarantine_reason) == (1, "far from the others")
    (row,) = (await world.stub(Role.USER, "alice").unary("ListEnvoys", pb.ListEnvoysRequest())).envoys
    assert list(row.quarantined_in) == [experiment]
    (row,) = (await world.stub(Role.USER, "bob").unary("ListEnvoys", pb.ListEnvoysRequest())).envoys
    assert not row.quarantined_in, "another user's experiment is none of his business"
    request = pb.ReleaseSiteRequest(experiment=experiment, site="north", reason="a new scanner")
    with pytest.raises(IdentityError):
        await world.stub(Role.USER, "alice").unary("ReleaseSite", request)
    profile = world.profile(Role.OPERATOR, "root")

    def command(*arguments: str) -> str:
        done = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*arguments, "--profile", str(profile)])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    shown = await asyncio.to_thread(command, "show", experiment)
    assert "in quarantine since round 1" in shown and "far from the others" in shown
    assert experiment in await asyncio.to_thread(command, "envoys")
    told = [await asyncio.to_thread(command, "release", experiment, "north", "--reason", "a new scanner") for _ in "12"]
    assert told == ["north is released; it was in quarantine since round 1", "north is not in quarantine"]
    operator = world.stub(Role.OPERATOR, "root")
    assert [row.releases for row in (await aggregator.read_kind("roster")).sites] == [1]
    await aggregator.report(2, 2, quarantined=[held])  # committed before the release was obeyed
    await aggregator.read_kind("acknowledge")
    (part,) = (await world.experiment(experiment)).sites
    assert (part.quarantined_since, part.releases) == (0, 1)
    again = await world.supervise(process)
    await again.read_kind("welcome")
    assert [row.releases for row in (await again.read_kind("roster")).sites] == [1]
    with pytest.raises(NotFoundError, match="'south' takes no part"):
        await operator.unary("ReleaseSite", pb.ReleaseSiteRequest(experiment=experiment, site="south"))
    await again.end()
    seen = await world.until_state(experiment, pb.EXPERIMENT_STATE_COMPLETED)
    assert [event.text for event in seen if "quarantine" in event.text and event.kind == "site"] == [
        "north is in quarantine since round 1: far from the others",
        "north is released from quarantine: a new scanner",
    ]
    with pytest.raises(ConflictError, match="is completed: nobody is asked any more"):
        await operator.unary("ReleaseSite", request)


async def test_a_completed_experiment_cannot_be_cancelled(world: Any, make_package: Any, make_shard: Any) -> None:
    experiment, _, _, aggregator = await start(world, make_package, make_shard, "north")
    await aggregator.end()
    await world.until_state(experiment, pb.EXPERIMENT_STATE_COMPLETED)
    with pytest.raises(ConflictError, match="is completed and cannot become cancelled"):
        request = pb.CancelExperimentRequest(experiment=experiment)
        await world.stub(Role.USER, "alice").unary("CancelExperiment", request)


async def test_malformed_messages_end_the_session_with_the_reason(world: Any, make_shard: Any) -> None:
    with pytest.raises(MalformedMessageError, match="first message must be hello"):
        call = world.stub(Role.ENVOY, "north").bidi("Attend")
        await call.write(pb.AttendRequest(offers=pb.ShardOffers()))
        await call.read()
    envoy = await world.attend("north", make_shard("../etc"))
    with pytest.raises(MalformedMessageError, match=r"shard name '\.\./etc' is not valid"):
        await envoy.read()
    with pytest.raises(StaleRoundError, match="another director is in charge"):
        call = world.stub(Role.ENVOY, "north").bidi("Attend")
        hello = pb.EnvoyHello(director_epoch=99)
        hello.protocol.lowest = hello.protocol.highest = PROTOCOL.highest
        await call.write(pb.AttendRequest(hello=hello))
        await call.read()
    with pytest.raises(PeerError, match="no common protocol"):
        call = world.stub(Role.ENVOY, "north").bidi("Attend")
        hello = pb.EnvoyHello()
        hello.protocol.lowest = hello.protocol.highest = 7
        await call.write(pb.AttendRequest(hello=hello))
        await call.read()


async def test_released_log_lines_reach_the_owner_while_he_follows(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, (envoy,), process, aggregator = await start(world, make_package, make_shard, "north")
    await envoy.accept()
    await aggregator.roster_of("north")
    request = pb.ReadLogsRequest(experiment=experiment, site="north", follow=True)
    async with asyncio.timeout(60), world.stub(Role.USER, "alice").server_stream("ReadLogs", request) as stream:
        released = pb.ReleasedLogs(experiment=experiment, lines=["epoch 1", "two\nlines"])
        await envoy.call.write(pb.AttendRequest(logs=released))
        assert list((await stream.read()).lines) == ["epoch 1", "two lines"]
        await aggregator.end()
        await world.until_state(experiment, pb.EXPERIMENT_STATE_COMPLETED)
        process.end()
        assert await stream.read() is None


async def test_a_bundle_goes_to_assigned_envoys_only(world: Any, make_package: Any, make_shard: Any) -> None:
    package = make_package()
    envoy = await world.attend("north", make_shard())
    experiment = await package.submit(world)
    aggregator = await world.supervise(await world.launcher.next())
    await aggregator.welcomed()
    assert (await envoy.read_kind("assignment")).bundle_bytes == len(package.bundle)
    request = pb.FetchBundleRequest(experiment=experiment, offset=5)
    replies = world.stub(Role.ENVOY, "north").server_stream("FetchBundle", request)
    assert b"".join([reply.chunk.data async for reply in replies]) == package.bundle[5:]
    url = f"http://127.0.0.1:{world.director.metrics_port}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as reply:
        shown = await reply.text()
    for direction, payload, nbytes in (
        ("in", "bundle", len(package.bundle)),
        ("in", "model", len(package.model)),
        ("out", "bundle", len(package.bundle) - 5),
    ):
        series = f'federation_payload_bytes_total{{direction="{direction}",payload="{payload}"}}'
        assert f"{series} {float(nbytes)}" in shown
    with pytest.raises(NotFoundError, match="is not assigned"):
        await world.stub(Role.ENVOY, "stranger").server_stream("FetchBundle", request).read()


async def test_envoys_are_listed_with_their_shards_online_or_not(world: Any, make_shard: Any) -> None:
    north = await world.attend("north", make_shard(description="ward 3"))
    await world.attend("south")
    await north.leave()
    listed = await world.stub(Role.USER, "alice").unary("ListEnvoys", pb.ListEnvoysRequest())
    assert [(item.site, item.online) for item in listed.envoys] == [("north", False), ("south", True)]
    assert [item.description for item in listed.envoys[0].shards] == ["ward 3"]


async def test_watching_goes_on_from_a_cursor_and_ends_after_the_terminal_event(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    experiment, _, _, aggregator = await start(world, make_package, make_shard, "north")
    seen = await world.until_state(experiment, pb.EXPERIMENT_STATE_RUNNING)
    sequences = [event.sequence for event in seen]
    assert sequences == sorted(set(sequences))
    await aggregator.report(1, 1)
    await aggregator.end()
    request = pb.WatchExperimentRequest(experiment=experiment, cursor=sequences[-1])
    async with asyncio.timeout(60):
        later = [event async for event in world.stub(Role.USER, "alice").server_stream("WatchExperiment", request)]
        request.cursor = later[-1].sequence
        beyond = [event async for event in world.stub(Role.USER, "alice").server_stream("WatchExperiment", request)]
    assert later[0].sequence > sequences[-1]
    assert [event.kind for event in later if event.kind != "assignment"] == ["round", "state"]
    assert later[-1].transition.state == pb.EXPERIMENT_STATE_COMPLETED
    assert beyond == []


async def test_a_list_of_nothing_says_so_and_is_an_empty_list_as_json(world: Any) -> None:
    profile = world.profile(Role.USER, "alice")

    def listed(*more: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["list", "--profile", str(profile), *more])
        return done.exit_code, done.stdout, done.stderr

    code, table, said = await asyncio.to_thread(listed)
    assert (code, said) == (0, "no experiment found\n") and "experiment" in table
    assert await asyncio.to_thread(listed, "--json") == (0, "[]\n", "")
