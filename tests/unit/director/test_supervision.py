"""An aggregator's session: its welcome comes first, and what it tells in quick succession is stored at once."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from director import lifecycle
from director.store import events, experiments
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


async def run(database: Database, experiment: str) -> None:
    """Have epoch 1 of an experiment granted."""
    for to in (ExperimentState.QUEUED, ExperimentState.RUNNING):
        change = lifecycle.Change(to=to, reason="test", actor="spiffe://test/director/director", at=1.0)
        if to is ExperimentState.QUEUED:
            await database.transact(experiments.change, experiment, change)
    await database.transact(experiments.grant_epoch, experiment, Epoch(0), change)


def serve(
    supervision: Supervision, experiment: str, said: list[pb.SuperviseRequest], silent: asyncio.Event
) -> AsyncIterator[pb.SuperviseReply]:
    """Return the session of an aggregator that says hello, then this, then nothing."""

    async def requests() -> AsyncIterator[pb.SuperviseRequest]:
        hello = pb.AggregatorHello(experiment=experiment, epoch=1, metrics_address="127.0.0.1:9")
        hello.protocol.CopyFrom(range_to_proto())
        yield pb.SuperviseRequest(hello=hello)
        for request in said:
            yield request
        await silent.wait()

    identity = Identity(federation="test", role=Role.AGGREGATOR, name=experiment)  # type: ignore[arg-type]
    peer = Peer(identity=identity, serial=1, expires_at=2.0**40, fingerprint="")
    raw: Any = None
    return supervision.serve(requests(), Call(method="Supervise", peer=peer, raw=raw))


async def test_a_roster_that_changes_while_an_aggregator_is_let_in_follows_its_welcome(
    database: Database, experiment: str
) -> None:
    await run(database, experiment)
    supervision = Supervision(database=database, clock=FakeClock(), listener=Unmoved(), revoked=lambda: ("a1",))
    replies = serve(supervision, experiment, [], asyncio.Event())
    first = asyncio.ensure_future(anext(replies))
    await asyncio.sleep(0)  # its first question is with the database's one thread now, and ours comes after it
    await database.relaxed(experiments.get, experiment)
    assert supervision.metrics_targets(), "it is let in"
    await supervision.push_roster(ExperimentId(experiment))
    supervision.push_revoked()
    assert (await first).WhichOneof("message") == "welcome"
    assert (await anext(replies)).WhichOneof("message") == "roster"
    await replies.aclose()  # type: ignore[attr-defined]


async def test_progress_is_stored_with_what_comes_soon_after_it_and_an_audit_event_waits_for_nothing(
    database: Database, experiment: str, announced: list[frozenset[str]]
) -> None:
    await run(database, experiment)
    told = ("phase", "update", "update", "audit")
    said = [pb.SuperviseRequest(event=pb.Event(kind=kind, text=f"{at}")) for at, kind in enumerate(told)]
    said.append(pb.SuperviseRequest(report=pb.RoundReport(sequence=7, round=1, epoch=1, model_digest="ab" * 32)))
    said.append(pb.SuperviseRequest(end=pb.ExperimentEnd(outcome="completed", sequence=8)))
    supervision = Supervision(database=database, clock=FakeClock(), listener=Unmoved(), revoked=tuple)
    announced.clear()
    acknowledged = [
        reply.acknowledge.sequence
        async for reply in serve(supervision, experiment, said, asyncio.Event())
        if reply.WhichOneof("message") == "acknowledge"
    ]
    assert acknowledged == [7, 8]
    assert len(announced) == 4, "the first event, those up to the audit event, the report, the end"
    stored = await database.relaxed(events.after, experiment, 0, 100)
    assert [event.kind for event in stored[-3:]] == ["audit", "round", "state"]
    assert not [event for event in stored if event.kind in events.PROGRESS_KINDS], "its round is committed"


async def test_a_session_that_is_cancelled_while_its_last_reports_are_stored_leaves_no_task_behind(
    database: Database, experiment: str
) -> None:
    await run(database, experiment)
    said = [
        pb.SuperviseRequest(report=pb.RoundReport(sequence=sequence, round=sequence, epoch=1, model_digest="ab" * 32))
        for sequence in (1, 2)
    ]
    supervision = Supervision(database=database, clock=FakeClock(), listener=Unmoved(), revoked=tuple)
    replies = serve(supervision, experiment, said, asyncio.Event())
    while (await anext(replies)).WhichOneof("message") != "acknowledge":
        pass
    is_free = threading.Event()
    busy = asyncio.create_task(database.relaxed(lambda _: is_free.wait(60)))
    supervision.close()
    ending = asyncio.ensure_future(anext(replies))
    for _ in range(20):
        await asyncio.sleep(0)  # the second report waits for the database now
    (storing,) = [task for task in asyncio.all_tasks() if task.get_name().startswith("reports of")]
    ending.cancel()
    is_free.set()
    await asyncio.wait({busy, ending})
    assert storing.done()
