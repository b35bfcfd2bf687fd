"""An aggregator's session: what may be said before its welcome, which it must hear first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from director import lifecycle
from director.store import experiments
from director.supervision import Supervision
from federation.names import Epoch, ExperimentId, ExperimentState, Identity, Role
from federation.testing.clock import FakeClock
from federation.transport.authority import Peer
from federation.transport.calls import Call
from federation.v1 import director_pb2 as pb
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from director.store.database import Database


class Unmoved:
    """A listener who does nothing."""

    def aggregator_ready(self, experiment: ExperimentId) -> None: ...
    def state_changed(self) -> None: ...
    def ended(self, experiment: ExperimentId) -> None: ...


async def test_a_roster_that_changes_while_an_aggregator_is_let_in_follows_its_welcome(
    database: Database, experiment: str
) -> None:
    for to in (ExperimentState.QUEUED, ExperimentState.RUNNING):
        change = lifecycle.Change(to=to, reason="test", actor="spiffe://test/director/director", at=1.0)
        if to is ExperimentState.QUEUED:
            await database.transact(experiments.change, experiment, change)
    await database.transact(experiments.grant_epoch, experiment, Epoch(0), change)
    supervision = Supervision(database=database, clock=FakeClock(), listener=Unmoved(), revoked=lambda: ("a1",))
    silent = asyncio.Event()

    async def requests() -> AsyncIterator[pb.SuperviseRequest]:
        hello = pb.AggregatorHello(experiment=experiment, epoch=1, metrics_address="127.0.0.1:9")
        hello.protocol.CopyFrom(range_to_proto())
        yield pb.SuperviseRequest(hello=hello)
        await silent.wait()

    identity = Identity(federation="test", role=Role.AGGREGATOR, name=experiment)  # type: ignore[arg-type]
    peer = Peer(identity=identity, serial=1, expires_at=2.0**40, fingerprint="")
    raw: Any = None
    replies = supervision.serve(requests(), Call(method="Supervise", peer=peer, raw=raw))
    first = asyncio.ensure_future(anext(replies))
    await asyncio.sleep(0)  # its first question is with the database's one thread now, and ours comes after it
    await database.relaxed(experiments.get, experiment)
    assert supervision.metrics_targets(), "it is let in"
    await supervision.push_roster(ExperimentId(experiment))
    supervision.push_revoked()
    assert (await first).WhichOneof("message") == "welcome"
    assert (await anext(replies)).WhichOneof("message") == "roster"
    await replies.aclose()  # type: ignore[attr-defined]
