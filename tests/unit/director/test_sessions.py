"""A conversation over one stream: order, ends, and which side's error wins."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from director.sessions import Outbox, converse, first
from federation.errors import ConflictError, LimitError, MalformedMessageError
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def messages(*items: str) -> AsyncIterator[str]:
    for item in items:
        yield item


async def silence() -> AsyncIterator[str]:
    await asyncio.Event().wait()
    yield ""


async def test_what_comes_is_handled_in_order_and_the_stream_ends_with_the_peer() -> None:
    outbox: Outbox[str] = Outbox()

    async def echo(item: str) -> None:
        outbox.put(item.upper())

    assert [reply async for reply in converse(messages("a", "b"), echo, outbox, name="test")] == ["A", "B"]


async def test_a_handlers_error_ends_the_stream_after_what_was_queued() -> None:
    outbox: Outbox[str] = Outbox()

    async def refuse(item: str) -> None:
        outbox.put("heard")
        raise ConflictError(item)

    talk = converse(messages("no"), refuse, outbox, name="test")
    assert await anext(talk) == "heard"
    with pytest.raises(ConflictError, match="no"):
        await anext(talk)


async def test_closing_the_outbox_ends_a_conversation_with_a_silent_peer() -> None:
    outbox: Outbox[str] = Outbox()

    async def never(item: str) -> None:
        raise AssertionError(item)

    outbox.put("last")
    outbox.close(ConflictError("superseded"))
    outbox.put("too late")
    talk = converse(silence(), never, outbox, name="test")
    assert await anext(talk) == "last"
    with pytest.raises(ConflictError, match="superseded"):
        await anext(talk)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "test"]


async def test_a_peer_that_does_not_read_is_ended() -> None:
    outbox: Outbox[int] = Outbox()
    for number in range(10_002):
        outbox.put(number)
    with pytest.raises(LimitError, match="does not read"):
        async for _ in outbox.drain():
            pass


async def test_the_first_message_must_be_the_one_that_is_due() -> None:
    async def requests(*items: pb.AttendRequest) -> AsyncIterator[pb.AttendRequest]:
        for item in items:
            yield item

    hello = pb.AttendRequest(hello=pb.EnvoyHello())
    assert await first(requests(hello), "hello") == hello
    with pytest.raises(MalformedMessageError, match="ended before"):
        await first(requests(), "hello")
    with pytest.raises(MalformedMessageError, match="must be hello, got None"):
        await first(requests(pb.AttendRequest()), "hello")
