"""Roster, superseding, grace and bounds, on a clock that moves when told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from federation.aggregator import sessions as sessions_module
from federation.aggregator.sessions import Bounds, Sessions
from federation.errors import ConflictError, IdentityError, LimitError
from federation.names import SiteName
from federation.rounds.events import SiteLost, SiteReady
from federation.testing.clock import FakeClock
from federation.v1 import aggregator_pb2 as pb

A, B = SiteName("a"), SiteName("b")
BOUNDS = Bounds(train_examples=100, validation_examples=50)


class Scene:
    """Sessions, and everything they said."""

    def __init__(self, *roster):
        self.clock = FakeClock()
        self.events = []
        self.sessions = Sessions(self.clock, 10.0, self.events.append)
        self.sessions.set_roster({site: BOUNDS for site in roster})

    async def open(self, site):
        errors = []
        session = await self.sessions.open(site, SimpleNamespace(end=errors.append))
        session_errors[session] = errors
        return session


session_errors = {}


def task(number=1):
    return pb.ParticipateReply(task=pb.Task(round=number))


def verdict(number=1):
    return pb.ParticipateReply(verdict=pb.Verdict(round=number, counted=True))


async def test_a_verdict_with_a_task_right_behind_it_is_one_message():
    session = await Scene(A).open(A)
    shared = task(2)
    for reply in (verdict(1), shared, verdict(2)):
        session.send(reply)
    joint = await session.receive()
    assert (joint.task.round, joint.task.verdict.round) == (2, 1)
    assert not shared.task.HasField("verdict")  # other sites are sent the same task
    assert (await session.receive()).verdict.round == 2
    session.send(task(3))
    assert not (await session.receive()).task.HasField("verdict")
    session.send(verdict(3))
    session.end()
    assert (await session.receive()).verdict.round == 3
    assert await session.receive() is None


async def test_bounds_are_the_smaller_of_what_envoy_and_site_say():
    scene = Scene(A)
    session = await scene.open(A)
    scene.sessions.set_ready(session, train_examples=1_000_000, validation_examples=5)
    assert scene.sessions.bounds(A) == Bounds(train_examples=100, validation_examples=5)
    assert scene.events == [SiteReady(A)] and scene.sessions.ready == [A]


async def test_a_site_that_dials_early_waits_for_the_roster():
    scene = Scene()
    opening = asyncio.create_task(scene.open(A))
    await asyncio.sleep(0)
    assert not opening.done()
    scene.sessions.set_roster({A: BOUNDS})
    assert (await opening).site == A


async def test_a_site_the_roster_never_has_is_refused_after_the_grace():
    scene = Scene(B)
    opening = asyncio.create_task(scene.open(A))
    await asyncio.sleep(0)
    scene.clock.advance(10)
    with pytest.raises(IdentityError, match="a is not among"):
        await opening


async def test_a_newer_session_ends_the_older_whose_close_then_means_nothing():
    scene = Scene(A)
    older = await scene.open(A)
    scene.sessions.set_ready(older, train_examples=1, validation_examples=1)
    newer = await scene.open(A)
    assert isinstance(session_errors[older][0], ConflictError)
    scene.sessions.close(older)
    scene.clock.advance(100)
    assert scene.sessions.is_current(newer) and scene.events == [SiteReady(A)]


async def test_a_site_is_lost_only_after_its_grace():
    scene = Scene(A)
    session = await scene.open(A)
    scene.sessions.set_ready(session, train_examples=1, validation_examples=1)
    scene.sessions.close(session)
    scene.clock.advance(9)
    again = await scene.open(A)
    scene.sessions.set_ready(again, train_examples=1, validation_examples=1)
    scene.clock.advance(100)
    assert scene.events == [SiteReady(A), SiteReady(A)]
    scene.sessions.close(again)
    scene.clock.advance(10)
    assert scene.events[-1] == SiteLost(A)


async def test_a_site_that_the_roster_drops_is_lost_at_once():
    scene = Scene(A, B)
    session = await scene.open(A)
    scene.sessions.set_ready(session, train_examples=1, validation_examples=1)
    scene.sessions.set_roster({B: BOUNDS})
    assert scene.events[-1] == SiteLost(A, "left the experiment")
    assert isinstance(session_errors[session][0], IdentityError)
    assert scene.sessions.bounds(A) is None and not scene.sessions.is_member(A)


async def test_messages_queue_in_order_for_ready_sites_only():
    scene = Scene(A, B)
    session = await scene.open(A)
    assert not scene.sessions.send(A, task()) and not scene.sessions.send(B, task())
    scene.sessions.set_ready(session, train_examples=1, validation_examples=1)
    assert scene.sessions.send(A, task(1)) and scene.sessions.send(A, task(2))
    assert [(await session.receive()).task.round for _ in range(2)] == [1, 2]
    session.end()
    assert await session.receive() is None


async def test_a_site_that_does_not_read_is_disconnected(monkeypatch):
    monkeypatch.setattr(sessions_module, "MAX_QUEUED_BYTES", 10)
    scene = Scene(A)
    session = await scene.open(A)
    scene.sessions.set_ready(session, train_examples=1, validation_examples=1)
    while scene.sessions.send(A, task()):
        pass
    assert isinstance(session_errors[session][0], LimitError)


async def test_the_end_reaches_present_and_later_sessions_and_is_waited_for():
    scene = Scene(A, B)
    session = await scene.open(A)
    end = pb.ParticipateReply(finish=pb.Finish(outcome="completed"))
    finishing = asyncio.create_task(scene.sessions.finish(end, 5.0))
    assert (await session.receive()).finish.outcome == "completed"
    assert not finishing.done()
    scene.sessions.close(session)
    await finishing
    late = await scene.open(B)
    assert (await late.receive()).finish.outcome == "completed"


async def test_the_end_does_not_wait_for_ever():
    scene = Scene(A)
    await scene.open(A)
    finishing = asyncio.create_task(scene.sessions.finish(pb.ParticipateReply(finish=pb.Finish()), 5.0))
    await scene.clock.until_waiting()
    scene.clock.advance(4.9)
    await asyncio.sleep(0)
    assert not finishing.done(), "a site that still reads has its time"
    scene.clock.advance(0.1)
    await finishing
    assert scene.sessions.connected == 1
