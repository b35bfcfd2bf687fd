"""What a session says of itself for ``/ready``."""

from __future__ import annotations

from types import SimpleNamespace

from federation.collaborator.link import Link, LinkHolder
from federation.collaborator.session import Session
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
