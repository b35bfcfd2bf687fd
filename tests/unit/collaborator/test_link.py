"""What is said on a session's stream, with a stream that takes a message when the test says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from federation.collaborator.link import Link, LinkHolder
from federation.errors import TransportError
from federation.names import Epoch
from federation.v1 import aggregator_pb2


class Ended:
    """A stream that was ended on this side meanwhile."""

    async def try_write(self, request: aggregator_pb2.ParticipateRequest) -> bool:
        raise TransportError("ended on this side")


class Stream:
    """Takes one message at a time, each when `gate` opens."""

    def __init__(self) -> None:
        self.taken: list[aggregator_pb2.ParticipateRequest] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()

    async def try_write(self, request: aggregator_pb2.ParticipateRequest) -> bool:
        self.begun.set()
        await self.gate.wait()
        self.taken.append(request)
        return True


def holder_of(stream: Any) -> LinkHolder:
    links = LinkHolder()
    links.set(Link(stub=Any, call=stream, epoch=Epoch(1)))  # type: ignore[arg-type]
    return links


async def test_nothing_is_said_without_a_link() -> None:
    assert not await LinkHolder().say(aggregator_pb2.ParticipateRequest())


async def test_what_is_said_as_the_session_is_given_up_is_not_said_and_that_is_all() -> None:
    assert not await holder_of(Ended()).say(aggregator_pb2.ParticipateRequest())


async def test_a_message_under_way_is_not_cancelled_with_its_sender() -> None:
    stream = Stream()
    links = holder_of(stream)
    speaker = asyncio.create_task(links.say(aggregator_pb2.ParticipateRequest()))
    await stream.begun.wait()
    speaker.cancel()
    await asyncio.sleep(0)
    assert not speaker.done()
    stream.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await speaker
    assert len(stream.taken) == 1
    assert await links.say(aggregator_pb2.ParticipateRequest())


async def test_a_link_is_replaced_by_another_one_and_not_by_none() -> None:
    links, other = LinkHolder(), Link(stub=Any, call=Any, epoch=Epoch(2))  # type: ignore[arg-type]
    first = Link(stub=Any, call=Any, epoch=Epoch(1))  # type: ignore[arg-type]
    links.set(first)
    waiting = asyncio.create_task(links.replaced(first))
    for link in (None, first):
        links.set(link)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    links.set(other)  # a renewed session follows the present one without a moment between them
    await waiting


async def test_who_waits_for_a_link_and_for_its_end_is_told_of_each() -> None:
    links, link = LinkHolder(), Link(stub=Any, call=Any, epoch=Epoch(1))  # type: ignore[arg-type]
    await links.lost()
    getting = asyncio.create_task(links.get())
    await asyncio.sleep(0)
    links.set(link)
    assert await getting is link
    losing = asyncio.create_task(links.lost())
    await asyncio.sleep(0)
    assert not losing.done()
    links.set(None)
    await losing
