"""What a session says of itself for ``/ready``, and what ends its waiting."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from federation.collaborator.link import Link, LinkHolder
from federation.collaborator.session import SessionKeeper
from federation.errors import ConfigurationError
from federation.names import Digest, Epoch
from federation.testing.clock import FakeClock
from federation.testing.dialling import NobodyThere, QuietChannel, QuietStream
from federation.v1 import aggregator_pb2 as pb
from federation.wire.versions import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable


def session_with(clock: FakeClock, links: LinkHolder, open_channel: Any, make_stub: Any, queue: Any) -> SessionKeeper:
    return SessionKeeper(
        open_channel=open_channel,
        bulk_address=lambda _: None,
        make_stub=make_stub,
        experiment="trial-00000001",
        initial_base=Digest(bytes(32)),
        queue=queue,
        links=links,
        clock=clock,
        on_base=lambda _: None,
    )


async def test_a_session_is_trouble_while_there_is_none_with_the_aggregator() -> None:
    links, nobody = LinkHolder(), SimpleNamespace()
    session = session_with(FakeClock(), links, lambda: nobody, lambda _: nobody, nobody)
    assert session.trouble == "no session with the aggregator"
    links.set(Link(stub=nobody, call=nobody, epoch=Epoch(1)))
    assert session.trouble is None
    links.set(None)
    assert session.trouble is not None


@pytest.mark.parametrize(
    "news",
    [SessionKeeper.redial, SessionKeeper.renew, SessionKeeper.aggregator_is_there],
    ids=["another address", "another certificate", "started again"],
)
async def test_a_site_that_dials_in_vain_dials_again_as_there_is_news(news) -> None:
    clock, nobody = FakeClock(), SimpleNamespace()
    there = NobodyThere(clock)
    session = session_with(clock, LinkHolder(), there.dial, lambda _: nobody, nobody)
    running = asyncio.create_task(session.run())
    assert await there.wait_after(lambda: news(session), longest_s=15) == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Stream(QuietStream):
    """The site's end of a stream, which notes what kind of message was said."""

    def __init__(self) -> None:
        welcome = pb.SessionWelcome(protocol=PROTOCOL.highest, epoch=1, takes_updates=True)
        super().__init__(pb.ParticipateReply(welcome=welcome))
        self.said: list[str | None] = []
        self.has_heard = asyncio.Event()

    async def try_write(self, request: pb.ParticipateRequest) -> bool:
        self.said.append(request.WhichOneof("message"))
        if len(self.said) == 3:
            self.has_heard.set()
        return True


def session_over(open_stream: Callable[[], Stream], links: LinkHolder, clock: FakeClock) -> SessionKeeper:
    """Return a session of a site that says that it is ready in each of these streams."""

    async def announce() -> None:
        await links.say(pb.ParticipateRequest(ready=pb.SiteReady(train_examples=1)))

    queue: Any = SimpleNamespace(
        progress=SimpleNamespace(epoch=0, committed=0),
        plan_digest=b"",
        spec=SimpleNamespace(schema_=SimpleNamespace(local=())),
        work=SimpleNamespace(retained=None),
        welcome=lambda _: None,
        announce=announce,
    )
    session = session_with(clock, links, QuietChannel, lambda _: SimpleNamespace(bidi=lambda _: open_stream()), queue)
    session._is_prepared = True
    return session


async def test_an_aggregator_that_lets_a_site_in_and_drops_it_at_once_is_not_dialled_without_pause() -> None:
    clock, links = FakeClock(), LinkHolder()
    session = session_over(Stream, links, clock)
    running = asyncio.create_task(session.run())

    async def have_a_session_of(seconds: float) -> None:
        link = await links.get()
        clock.advance(seconds)
        link.call.over.set()
        await clock.until_waiting()
        clock.advance(clock.asked[-1])

    for _ in range(7):
        await have_a_session_of(0.5)
    assert clock.asked[6] >= 3.2  # half of 0.1 s, doubled six times
    await have_a_session_of(60)
    assert clock.asked[7] <= 0.1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_waited_for_a_session_is_said_once_the_site_is_ready_in_the_first_and_in_a_renewed_one() -> None:
    links, streams = LinkHolder(), [Stream(), Stream()]
    opening = iter(streams)
    session = session_over(lambda: next(opening), links, FakeClock())

    async def send_an_update(before: Link | None) -> Link:
        if before is not None:
            await links.replaced(before)
        link = await links.get()
        await links.say(pb.ParticipateRequest(update=pb.WholeUpdate()))
        return link

    running = asyncio.create_task(session.run())
    first = await send_an_update(None)
    await streams[0].has_heard.wait()
    second = asyncio.create_task(send_an_update(first))
    await asyncio.sleep(0)
    session.renew()
    await second
    await streams[1].has_heard.wait()
    assert [stream.said for stream in streams] == [["hello", "ready", "update"]] * 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_session_whose_certificate_files_cannot_be_read_for_lines_is_given_up_whole() -> None:
    clock, links, stream, closed = FakeClock(), LinkHolder(), Stream(), []
    stream._replies[0].welcome.bulk_port = 7200
    session = session_over(lambda: stream, links, clock)

    class Channel(QuietChannel):
        async def close(self) -> None:
            closed.append("channel")

    def half_written(_: int) -> NoReturn:
        raise ConfigurationError("the key is not the certificate's")

    session.open_channel, session.bulk_address = Channel, half_written
    stream.cancel = lambda: closed.append("call")  # type: ignore[method-assign]
    running = asyncio.create_task(session.run())
    await clock.until_waiting()
    assert closed == ["call", "channel"] and links.current is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
