"""An envoy, its collaborators and its director as they die, move and are started again."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from federation.errors import ConflictError
from federation.v1 import director_pb2

from .envoy_hosts import ANSWER, EXPERIMENT, finish

pytestmark = pytest.mark.timeout(180)


async def test_a_killed_envoy_leaves_its_collaborator_running_and_the_next_one_adopts_it(
    attend: Any, director: Any, wait_for_end: Any, until_gone: Any
) -> None:
    here = await attend()
    collaborator = here.host.pid("collaborator")
    os.kill(here.child.identity.pid, signal.SIGKILL)
    await wait_for_end(here.child)
    here.site.send(task=here.aggregator.task(here.trial.first_model))
    await here.aggregator.next_update()  # the round goes on without an envoy

    await here.host.start()
    session = await director.next_session()
    assert list(session.hello.running) == [EXPERIMENT]
    assert here.host.pid("collaborator") == collaborator
    finish(here.site)
    assert (await session.hear("status")).state == "finished"
    await until_gone(collaborator)


async def test_a_crashed_collaborator_is_started_again(attend: Any, until_gone: Any) -> None:
    here = await attend()
    first, trainer = here.host.pid("collaborator"), here.host.pid("collaborator", "trainer")
    os.kill(first, signal.SIGKILL)
    await until_gone(trainer)
    site = await here.aggregator.next_session()
    await site.hear("ready")
    assert here.host.pid("collaborator") != first
    finish(site)
    assert (await here.session.hear("status")).state == "finished"


async def test_a_withdrawn_experiment_leaves_nothing_before_the_next_question_is_answered(
    attend: Any, wait_for_end: Any, until_gone: Any
) -> None:
    here = await attend()
    collaborator, trainer = here.host.pid("collaborator"), here.host.pid("collaborator", "trainer")
    here.session.send(withdrawal=director_pb2.Withdrawal(experiment=EXPERIMENT, reason="cancelled by ada"))
    here.session.send(assignment=here.trial.assignment(here.aggregator.address))
    assert (await here.session.hear("answer")).answer == ANSWER.ANSWER_REFUSED
    await until_gone(collaborator)
    await until_gone(trainer)
    here.child.terminate()
    await wait_for_end(here.child)
    assert [path.name for path in here.host.experiment.iterdir()] == ["participation.json"]


async def test_an_end_that_the_disk_does_not_take_is_told_all_the_same(attend: Any) -> None:
    here = await attend()
    record = here.host.experiment / "participation.json"
    record.unlink()
    (record / "in the way").mkdir(parents=True)
    finish(here.site)
    assert (await here.session.hear("status")).state == "finished"
    here.session.send(assignment=here.trial.assignment(here.aggregator.address))
    assert (await here.session.hear("status")).state == "finished", "in the same session"
    assert "could not be written down" in here.host.log
    assert [path.name for path in here.host.experiment.iterdir()] == ["participation.json"]


async def test_sigterm_leaves_no_process_and_the_next_start_goes_on(
    attend: Any, wait_for_end: Any, until_gone: Any
) -> None:
    here = await attend()
    collaborator, trainer = here.host.pid("collaborator"), here.host.pid("collaborator", "trainer")
    here.child.terminate()
    assert (await wait_for_end(here.child)).code == 0
    await until_gone(collaborator)
    await until_gone(trainer)
    await here.host.start()
    site = await here.aggregator.next_session()
    await site.hear("ready")


async def test_a_moved_aggregator_is_found(attend: Any, aggregator_of: Any) -> None:
    here = await attend()
    second = await aggregator_of(here.trial)
    second.epoch = 2
    here.session.send(assignment=here.trial.assignment(second.address))
    await (await second.next_session()).hear("ready")
    assert second.hellos[0].last_epoch == 1
    assert await asyncio.wait_for(here.site.heard.get(), 60) is None


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
    assert stale.heard.empty() or stale.heard.get_nowait() is None


async def test_an_envoy_that_is_superseded_attends_no_more_and_says_so(director: Any, make_host: Any) -> None:
    host = make_host()
    await host.start()
    session = await director.next_session()
    await session.hear("offers")
    session.call.end(ConflictError("superseded by a newer session of north: do not connect again"))
    async with asyncio.timeout(60):
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
