"""An envoy, its collaborators and its director as they die, move and are started again."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from federation.errors import ConflictError
from federation.v1 import director_pb2

from .envoy_hosts import ANSWER, EXPERIMENT, accepted, finish

pytestmark = pytest.mark.timeout(180)


async def test_a_killed_envoy_leaves_its_collaborator_running_and_the_next_one_adopts_it(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    _, site, child = await accepted(trial, aggregator, director, host)
    collaborator = host.pid("collaborator")
    os.kill(child.identity.pid, signal.SIGKILL)
    await wait_for_end(child)
    site.send(task=aggregator.task(trial.first_model))
    await aggregator.next_update()  # the round goes on without an envoy

    child = await host.start()
    session = await director.next_session()
    assert list(session.hello.running) == [EXPERIMENT]
    assert host.pid("collaborator") == collaborator
    finish(site)
    assert (await session.hear("status")).state == "finished"
    await until_gone(collaborator)


async def test_a_crashed_collaborator_is_started_again(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    session, _, _ = await accepted(trial, aggregator, director, host)
    first, trainer = host.pid("collaborator"), host.pid("collaborator", "trainer")
    os.kill(first, signal.SIGKILL)
    await until_gone(trainer)
    site = await aggregator.next_session()
    await site.hear("ready")
    assert host.pid("collaborator") != first
    finish(site)
    assert (await session.hear("status")).state == "finished"


async def test_a_withdrawn_experiment_leaves_nothing_before_the_next_question_is_answered(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    session, _, child = await accepted(trial, aggregator, director, host)
    collaborator, trainer = host.pid("collaborator"), host.pid("collaborator", "trainer")
    session.send(withdrawal=director_pb2.Withdrawal(experiment=EXPERIMENT, reason="cancelled by ada"))
    session.send(assignment=trial.assignment(aggregator.address))
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_REFUSED
    await until_gone(collaborator)
    await until_gone(trainer)
    child.terminate()
    await wait_for_end(child)
    assert [path.name for path in host.experiment.iterdir()] == ["participation.json"]


async def test_sigterm_leaves_no_process_and_the_next_start_goes_on(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    _, _, child = await accepted(trial, aggregator, director, host)
    collaborator, trainer = host.pid("collaborator"), host.pid("collaborator", "trainer")
    child.terminate()
    assert (await wait_for_end(child)).code == 0
    await until_gone(collaborator)
    await until_gone(trainer)
    await host.start()
    site = await aggregator.next_session()
    await site.hear("ready")


async def test_a_moved_aggregator_is_found(make_trial: Any, aggregator_of: Any, director: Any, make_host: Any) -> None:
    trial = make_trial()
    first, host = await aggregator_of(trial), make_host()
    session, site, _ = await accepted(trial, first, director, host)
    second = await aggregator_of(trial)
    second.epoch = 2
    session.send(assignment=trial.assignment(second.address))
    await (await second.next_session()).hear("ready")
    assert second.hellos[0].last_epoch == 1
    assert await asyncio.wait_for(site.heard.get(), 10) is None


async def test_a_superseded_director_is_left_and_a_newer_one_found(director: Any, make_host: Any) -> None:
    host = make_host()
    director.epoch = 5
    await host.start()
    session = await director.next_session()
    await session.hear("offers")
    director.epoch = 4
    session.cut()
    stale = await director.next_session()
    assert stale.hello.director_epoch == 5
    director.epoch = 6
    session = await director.next_session()
    while session.outbox.empty() and session.hello.director_epoch != 5:
        session = await director.next_session()
    await session.hear("offers")
    assert stale.heard.empty()


async def test_an_envoy_that_is_superseded_attends_no_more_and_says_so(director: Any, make_host: Any) -> None:
    host = make_host()
    await host.start()
    session = await director.next_session()
    await session.hear("offers")
    session.call.end(ConflictError("superseded by a newer session of north: do not connect again"))
    async with asyncio.timeout(30):
        while "superseded" not in (await host.get("/ready"))["checks"]["director"]:
            pass
    assert "another envoy with this site's certificate" in host.log
    assert director.sessions.empty()


async def test_a_second_envoy_on_one_state_folder_is_refused(director: Any, make_host: Any, wait_for_end: Any) -> None:
    host = make_host()
    await host.start()
    await director.next_session()
    second = await host.owner()
    assert second.returncode == 2
    assert "another envoy uses state folder" in second.stderr
