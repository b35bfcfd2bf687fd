"""What a session says of itself for ``/ready``, and what ends its waiting."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from federation.collaborator.link import Link, LinkHolder
from federation.collaborator.session import Session
from federation.errors import TransportError
from federation.names import Digest, Epoch
from federation.testing.clock import FakeClock


async def test_a_session_is_trouble_while_there_is_none_with_the_aggregator() -> None:
    links, nobody = LinkHolder(), SimpleNamespace()
    session = Session(
        open_channel=lambda: nobody,
        make_stub=lambda _: nobody,
        experiment="trial-00000001",
        initial_base=Digest(bytes(32)),
        desk=nobody,
        links=links,
        clock=FakeClock(),
        on_base=lambda _: None,
    )
    assert session.trouble == "no session with the aggregator"
    links.set(Link(stub=nobody, call=nobody, epoch=Epoch(1)))
    assert session.trouble is None
    links.set(None)
    assert session.trouble is not None


@pytest.mark.parametrize(
    "news",
    [Session.redial, Session.renew, Session.aggregator_is_there],
    ids=["another address", "another certificate", "started again"],
)
async def test_a_site_that_dials_in_vain_dials_again_as_there_is_news(news) -> None:
    clock, nobody = FakeClock(), SimpleNamespace()
    dialled: asyncio.Queue[float] = asyncio.Queue()

    def fail():
        dialled.put_nowait(clock.monotonic())
        raise TransportError("nobody is there")

    session = Session(
        open_channel=fail,
        make_stub=lambda _: nobody,
        experiment="trial-00000001",
        initial_base=Digest(bytes(32)),
        desk=nobody,
        links=LinkHolder(),
        clock=clock,
        on_base=lambda _: None,
    )
    running = asyncio.create_task(session.run())
    for _ in range(10):
        await dialled.get()
        await clock.until_waiting()
        clock.advance(15)  # the longest delay
    waits_since = await dialled.get()
    await clock.until_waiting()
    news(session)
    assert await dialled.get() == waits_since
    await clock.until_waiting()
    clock.advance(0.1)  # the first delay, once more
    await dialled.get()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
