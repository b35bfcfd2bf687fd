"""The ``director`` command as a process of its own, with real aggregator processes under it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from director.store import experiments
from director.store.database import Database
from director.store.tables import Audit
from federation.errors import TransportError
from federation.names import ExperimentState, Role
from federation.runtime.children import ProcessIdentity
from federation.v1 import director_pb2 as pb

from .processes import WAIT_S, People, attend, director_process, next_assignment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


def aggregator_of(config: Path, experiment: str) -> ProcessIdentity:
    return ProcessIdentity.from_json((config.parent / "state/work" / experiment / "process.json").read_text())


async def has_ended(identity: ProcessIdentity) -> None:
    """Return once the process is gone; a pidfd tells, nothing is polled."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, gone.set)
        if identity.is_alive():
            await asyncio.wait_for(gone.wait(), WAIT_S)
        asyncio.get_running_loop().remove_reader(descriptor)
    finally:
        os.close(descriptor)


async def state_in(config: Path, experiment: str) -> ExperimentState:
    database = Database(f"sqlite:///{config.parent}/state/director.db", lambda _: None)
    try:
        return (await database.transact(experiments.get, experiment)).state
    finally:
        await database.close()


async def test_a_real_aggregator_survives_kills_of_itself_and_of_the_director_and_drains(
    config: Path, pki: Any, make_package: Any, make_shard: Any
) -> None:
    async with director_process(config) as director:
        people = People(pki, director.port)
        async with people.stub(Role.ENVOY, "north") as envoy, people.stub(Role.USER, "alice") as alice:
            call = await attend(envoy, make_shard)
            reply = await alice.client_stream("Submit", make_package().requests())
            experiment = reply.experiment
            first = await next_assignment(call)
            killed = aggregator_of(config, experiment)
            os.kill(killed.pid, signal.SIGKILL)
            await next_assignment(call)
            survivor = aggregator_of(config, experiment)
            assert survivor != killed
            assert first.aggregator_server_name == f"{experiment}.aggregator.test.internal"
        assert await director.end(signal.SIGKILL) == -signal.SIGKILL

    assert survivor.is_alive()
    async with director_process(config) as director:
        people = People(pki, director.port)
        assert aggregator_of(config, experiment) == survivor
        assert await director.end(signal.SIGTERM) == 0
    await has_ended(survivor)
    assert await state_in(config, experiment) is ExperimentState.RUNNING
    assert not (config.parent / "state/work" / experiment / "director").exists()


async def test_a_cancelled_experiment_leaves_no_process_and_only_its_log(
    config: Path, pki: Any, make_package: Any, make_shard: Any
) -> None:
    async with director_process(config) as director:
        people = People(pki, director.port)
        async with people.stub(Role.ENVOY, "north") as envoy, people.stub(Role.USER, "alice") as alice:
            call = await attend(envoy, make_shard)
            experiment = (await alice.client_stream("Submit", make_package().requests())).experiment
            await next_assignment(call)
            aggregator = aggregator_of(config, experiment)
            request = pb.CancelExperimentRequest(experiment=experiment, reason="enough")
            await alice.unary("CancelExperiment", request)
            await has_ended(aggregator)
            request = pb.ReadLogsRequest(experiment=experiment, follow=True)
            async with asyncio.timeout(WAIT_S), alice.server_stream("ReadLogs", request) as stream:
                lines = [line async for batch in stream for line in batch.lines]
            assert any(json.loads(line)["experiment"] == experiment for line in lines if line.startswith("{"))
        folder = config.parent / "state/work" / experiment
        assert [entry.name for entry in folder.iterdir()] == ["aggregator.log"]
        assert await director.end(signal.SIGTERM) == 0


async def test_a_director_without_anything_to_do_stops_at_sigterm(config: Path) -> None:
    async with director_process(config) as director:
        assert await director.end(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in director.log.read_text().splitlines()]
    assert {"role": "director", "federation": "test"}.items() <= lines[0].items()
    assert any(line["event"] == "director runs" for line in lines)


# --- kill -9 in the middle of a release


@contextlib.asynccontextmanager
async def supervised(people: People, experiment: str, make_aggregator: Any) -> AsyncIterator[tuple[Any, list[int]]]:
    """Stand in for the experiment's aggregator; yields it, and how often the roster says that its site was released."""
    async with people.stub(Role.AGGREGATOR, experiment) as stub:
        aggregator = make_aggregator(experiment, stub.bidi("Supervise"))
        await aggregator.hello(1)
        await aggregator.read_kind("welcome")
        roster: Any = None
        while not roster:  # empty until the site has accepted
            roster = (await aggregator.read_kind("roster")).sites
        yield aggregator, [row.releases for row in roster]


async def held_in(people: People, experiment: str) -> tuple[int, int]:
    """Return since which round the site is in quarantine, and how often it was released."""
    async with people.stub(Role.USER, "alice") as alice:
        (part,) = (await alice.unary("GetExperiment", pb.GetExperimentRequest(experiment=experiment))).sites
    return part.quarantined_since, part.releases


async def release(people: People, experiment: str) -> bool:
    async with people.stub(Role.OPERATOR, "root") as operator:
        request = pb.ReleaseSiteRequest(experiment=experiment, site="north", reason="mended")
        return (await operator.unary("ReleaseSite", request)).released


async def audited(config: Path) -> list[str]:
    database = Database(f"sqlite:///{config.parent}/state/director.db", lambda _: None)
    query = select(Audit.action).where(Audit.subject.endswith("/north")).order_by(Audit.id)
    try:
        return list(await database.transact(lambda session: session.scalars(query).all()))
    finally:
        await database.close()


@pytest.fixture
def stopped() -> Iterator[list[ProcessIdentity]]:
    """Aggregators that a test stopped with SIGSTOP; they are killed at its end."""
    found: list[ProcessIdentity] = []
    yield found
    for identity in found:
        if identity.is_alive():
            os.kill(identity.pid, signal.SIGKILL)


async def test_a_release_is_recorded_and_told_or_not_at_all_wherever_the_director_is_killed(
    config: Path, pki: Any, make_package: Any, make_shard: Any, make_aggregator: Any, stopped: list[ProcessIdentity]
) -> None:
    def held(since: int, releases: int) -> list[pb.QuarantinedSite]:
        return [pb.QuarantinedSite(site="north", since_round=since, releases=releases, reason="far")]

    async with director_process(config, dies="recording") as director:
        people = People(pki, director.port)
        async with people.stub(Role.ENVOY, "north") as envoy, people.stub(Role.USER, "alice") as alice:
            call = await attend(envoy, make_shard)
            experiment = (await alice.client_stream("Submit", make_package().requests())).experiment
            await next_assignment(call)
            accepted = pb.AssignmentAnswer(experiment=experiment, answer=pb.AssignmentAnswer.ANSWER_ACCEPTED)
            await call.write(pb.AttendRequest(answer=accepted))
            real = aggregator_of(config, experiment)
            stopped.append(real)
            os.kill(real.pid, signal.SIGSTOP)  # the test speaks for it
            async with supervised(people, experiment, make_aggregator) as (aggregator, _):
                await aggregator.report(1, 1, quarantined=held(1, 0))
                await aggregator.read_kind("acknowledge")
                with pytest.raises(TransportError):
                    await release(people, experiment)
        assert await director.process.wait() == -signal.SIGKILL
    assert await audited(config) == ["QuarantineSite"]

    async with director_process(config, dies="telling") as director:
        people = People(pki, director.port)
        assert await held_in(people, experiment) == (1, 0), "nothing was recorded"
        async with supervised(people, experiment, make_aggregator) as (aggregator, releases):
            assert releases == [0]
            with pytest.raises(TransportError):
                await release(people, experiment)
            with pytest.raises(TransportError):  # nobody told it: the session ends without another roster
                await aggregator.read()
        assert await director.process.wait() == -signal.SIGKILL

    async with director_process(config, dies="answering") as director:
        people = People(pki, director.port)
        assert await held_in(people, experiment) == (0, 1)
        assert await audited(config) == ["QuarantineSite", "ReleaseSite"]
        async with supervised(people, experiment, make_aggregator) as (aggregator, releases):
            assert releases == [1]
            await aggregator.report(2, 2, quarantined=held(1, 0))  # committed before it knew
            await aggregator.report(3, 3, quarantined=held(3, 1))
            while (await aggregator.read_kind("acknowledge")).sequence < 3:
                pass
            asking = asyncio.create_task(release(people, experiment))
            assert [row.releases for row in (await aggregator.read_kind("roster")).sites] == [2]
            assert await director.end(signal.SIGKILL) == -signal.SIGKILL
            with pytest.raises(TransportError):
                await asking

    async with director_process(config) as director:
        people = People(pki, director.port)
        assert await held_in(people, experiment) == (0, 2)
        async with supervised(people, experiment, make_aggregator) as (aggregator, releases):
            assert releases == [2]
            assert await release(people, experiment) is False, "the operator, who had no answer, asks again"
    assert await audited(config) == ["QuarantineSite", "ReleaseSite"] * 2
