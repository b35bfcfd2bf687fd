"""A site that is late, at a real aggregator: what waits for it, when it is waited for again, and what is said of it.

Scripted sites over real mutual TLS and a clock of the test's own, which is put forward by one deadline a round: what
waited for a second one would wait for ever. Not tested here: what the site itself does meanwhile, and every order of
events (`tests/unit/collaborator`, `tests/unit/rounds`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from federation.errors import MalformedMessageError, Refusal, UpdateRejectedError
from federation.testing.aggregators import flat_schema
from federation.testing.clock import FakeClock
from federation.testing.scripted_sites import Finished
from federation.v1 import aggregator_pb2 as pb

from .stages import history, stage

PLAN = {"quorum": 2, "deadline_s": 60}
AT_WORK = {"site-c": "still at work since round 1"}


class Scene:
    """Three sites that were asked to train in round 1; a and b have answered, c has not."""

    def __init__(self, running, clock, sites, task):
        self.running, self.clock, self.task = running, clock, task
        self.a, self.b, self.late = sites

    async def close_round(self):
        """Let the deadline pass; return the tasks to evaluate, in order of the sites."""
        self.clock.advance(60)
        tasks = [await site.next_task() for site in (self.a, self.b, self.late)]
        assert {task.kind for task in tasks} == {pb.TASK_KIND_EVALUATE}
        return tasks

    async def is_taken_in(self, site):
        """Return once the aggregator has taken in what a site said: what it passes on to another it has read after."""
        await site.say(pb.ParticipateRequest(sealed=pb.SealedMessage(peer=self.a.name, purpose="hello", round=1)))
        while not (await self.a.hear()).HasField("sealed"):
            pass

    async def finish(self):
        """Let every site answer all that is asked until the end."""
        async with asyncio.TaskGroup() as group:
            for site in (self.a, self.b, self.late):
                group.create_task(self._serve(site))
        assert (await self.running.ended()).outcome == "completed"

    async def _serve(self, site):
        try:
            while True:
                await site.answer(await site.next_task())
        except Finished:
            await site.vanish()


@pytest.fixture(name="begin")
async def _begin(tmp_path):
    """Return what begins a scene, and ends it after the test."""
    async with AsyncExitStack() as stack:

        async def begin(**plan):
            built = stage(tmp_path, "abc", **{**PLAN, "rounds": 2, **plan})
            clock = FakeClock(now=time.time())
            running = await stack.enter_async_context(built.aggregator(clock=clock))
            sites = await stack.enter_async_context(sites_of(built, running))
            for site in sites:
                await site.ready()
            tasks = [await site.next_task() for site in sites]
            for site, task in zip(sites[:2], tasks, strict=False):
                await site.answer(task)
            return built, Scene(running, clock, sites, tasks[2])

        yield begin


async def test_a_round_waits_for_a_late_site_until_its_deadline_and_its_evaluation_does_not(begin):
    _, scene = await begin()
    tasks = await scene.close_round()
    await scene.a.answer(tasks[0])
    await scene.b.answer(tasks[1])
    assert (await scene.a.next_task()).round == 2
    again = await scene.late.next_task()
    assert (again.kind, again.round) == (pb.TASK_KIND_TRAIN, 2), "it is drawn like the others"


async def test_it_is_said_why_a_site_has_no_part_in_an_evaluation(begin):
    built, scene = await begin(rounds=1)
    tasks = await scene.close_round()
    await scene.a.answer(tasks[0])
    await scene.b.answer(tasks[1])
    await scene.finish()
    (record,) = history(built)["rounds"]
    assert record["unevaluated"] == AT_WORK
    assert [row["outcome"] for row in record["sites"]] == ["counted", "counted", "late"]
    assert [bool(row["metrics"]) for row in record["sites"]] == [True, True, False]


async def refused_in_a_call(scene):
    with pytest.raises(UpdateRejectedError) as caught:
        await scene.late.answer(scene.task)
    assert caught.value.refusal is Refusal.CLOSED_ROUND


async def refused_in_the_session(scene):
    payloads = {"delta": bytes(40)}
    await scene.late.push_whole(scene.late.header(scene.task, payloads, {}), payloads)
    assert (await scene.late.hear()).refused.reason == Refusal.CLOSED_ROUND.value


@pytest.mark.parametrize("send", [refused_in_a_call, refused_in_the_session])
async def test_a_late_site_whose_update_is_refused_meanwhile_is_waited_for(begin, send):
    built, scene = await begin(rounds=1)
    tasks = await scene.close_round()
    await send(scene)
    await has_its_say(built, scene, tasks)


async def test_a_late_site_whose_upload_the_deadline_cut_is_waited_for(begin):
    built, scene = await begin(rounds=1, schema=flat_schema(600_000))
    payloads = {"delta": bytes(2_400_000)}
    call = scene.late.stub.bidi("PushUpdate")
    await call.write(pb.PushUpdateRequest(header=scene.late.header(scene.task, payloads, {})))
    assert (await call.read()).HasField("holding")
    await has_its_say(built, scene, await scene.close_round())


async def test_a_late_site_that_says_it_failed_is_waited_for(begin):
    built, scene = await begin(rounds=1)
    tasks = await scene.close_round()
    failed = pb.TaskFailure(round=1, epoch=1, kind=pb.TASK_KIND_TRAIN, error_class="ValueError")
    await scene.late.say(pb.ParticipateRequest(failed=failed))
    await scene.is_taken_in(scene.late)
    await has_its_say(built, scene, tasks)


async def test_a_late_site_that_is_at_nothing_in_its_next_session_is_waited_for(begin):
    built, scene = await begin(rounds=1)
    tasks = await scene.close_round()
    await scene.late.cut()
    await scene.late.connect()
    await scene.late.ready()
    tasks[2] = await scene.late.next_task()
    await has_its_say(built, scene, tasks)


async def has_its_say(built, scene, tasks):
    """Let the punctual sites evaluate first; the late one must have been waited for."""
    await scene.a.answer(tasks[0])
    await scene.b.answer(tasks[1])
    await scene.is_taken_in(scene.a)
    await scene.is_taken_in(scene.b)
    await scene.late.answer(tasks[2])
    await scene.finish()
    (record,) = history(built)["rounds"]
    assert record["unevaluated"] == {}
    assert [bool(row["metrics"]) for row in record["sites"]] == [True] * 3


async def test_a_late_site_that_is_still_at_its_task_in_its_next_session_is_not_waited_for(begin):
    built, scene = await begin(rounds=1)
    tasks = await scene.close_round()
    await scene.late.cut()
    await scene.late.connect()
    await scene.late.ready(at_work=scene.task)
    assert (await scene.late.next_task()).kind == pb.TASK_KIND_EVALUATE
    await scene.a.answer(tasks[0])
    await scene.b.answer(tasks[1])
    await scene.finish()
    assert history(built)["rounds"][0]["unevaluated"] == AT_WORK


async def test_a_site_that_is_at_work_on_a_round_beyond_the_plan_has_no_session(begin):
    _, scene = await begin(rounds=1)
    await scene.late.cut()
    await scene.late.connect()
    await scene.late.ready(at_work=pb.Task(round=2, attempt=1))
    with pytest.raises(MalformedMessageError, match="which the plan does not have"):
        await scene.late.hear()


@asynccontextmanager
async def late_and_not_drawn(tmp_path):
    """Give a stage and a scene in which site c is late in round 1, and not drawn in round 2."""
    built = stage(tmp_path, "abc", rounds=2, sample=2, quorum=1, deadline_s=60, seed=13)
    clock = FakeClock(now=time.time())
    async with built.aggregator(clock=clock) as running, sites_of(built, running) as (a, b, c):
        for site in (a, b, c):
            await site.ready()
        late = await c.next_task()
        await a.answer(await a.next_task())
        clock.advance(60)
        yield built, Scene(running, clock, (a, b, c), late)


async def test_a_restarted_aggregator_hears_from_the_sites_who_is_still_at_work(tmp_path):
    """Site c is late in round 1 and not drawn in round 2, in whose evaluation the aggregator ends without a word."""
    async with late_and_not_drawn(tmp_path) as (built, scene):
        a, b = scene.a, scene.b
        for _ in ("evaluate round 1", "train in round 2"):
            for site in (a, b):
                await site.answer(await site.next_task())
        assert [(await site.next_task()).kind for site in (a, b)] == [pb.TASK_KIND_EVALUATE] * 2
        trained = (a.trained, b.trained, scene.late.trained)
        assert trained == ([1, 2], [2], [1]), "as the plan's seed draws them"
    clock, late = scene.clock, scene.task
    async with built.aggregator(clock=clock, epoch=2) as running, sites_of(built, running) as (a, b, c):
        await b.ready()
        await Scene(running, clock, (a, b, c), late).is_taken_in(b)
        await c.ready(at_work=late)  # once those who were asked in round 1 are there, it goes on
        await a.ready()
        for site in (a, b):
            await site.answer(await site.next_task())
        assert (await running.ended()).outcome == "completed"
    assert a.trained == b.trained == c.trained == []
    assert [record["unevaluated"] for record in history(built)["rounds"]] == [AT_WORK] * 2


async def test_a_late_site_whose_answer_comes_after_its_evaluation_is_waited_for_in_the_next(tmp_path):
    """Site c is late in round 1, and heard of only by its answer about that round's model, in round 2."""
    async with late_and_not_drawn(tmp_path) as (built, scene):
        a, b, c = scene.a, scene.b, scene.late
        for site in (a, b):
            await site.answer(await site.next_task())
        (task_a, task_b), stale = [await site.next_task() for site in (a, b)], await c.next_task()
        assert (stale.kind, stale.round) == (pb.TASK_KIND_EVALUATE, 1)
        await c.answer(stale)
        await scene.is_taken_in(c)
        await a.answer(task_a)
        await b.answer(task_b)
        tasks = [await site.next_task() for site in (a, b, c)]
        for site, task in zip((a, b), tasks, strict=False):
            await site.answer(task)
            await scene.is_taken_in(site)
        await c.answer(tasks[2])
        assert (await scene.running.ended()).outcome == "completed"
    assert [record["unevaluated"] for record in history(built)["rounds"]] == [AT_WORK, {}]


@asynccontextmanager
async def sites_of(built, running):
    """All sites of a stage, each with a session."""
    async with AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(built.site(name, running.address)) for name in built.sites]
        for site in sites:
            await site.connect()
        yield sites
