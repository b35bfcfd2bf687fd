"""An aggregator and its director's side of the wire: a scripted director over real mutual TLS.

The real director's half is tested with it; here the point is what the aggregator sends, sends again, and obeys.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import asynccontextmanager

import pytest

from federation.errors import IdentityError, NotFoundError
from federation.names import Role
from federation.pki import requests
from federation.plan import Plan, Quarantine
from federation.runtime.clock import SystemClock
from federation.telemetry.metrics import Metrics
from federation.testing.aggregators import EXPERIMENT, FEDERATION, Stage, flat_schema
from federation.testing.clock import FakeClock
from federation.testing.scripted_sites import Finished
from federation.transport.authority import Authority
from federation.transport.handlers import method_path
from federation.transport.server import RpcServer
from federation.v1 import director_pb2 as pb
from federation.v1 import tensors_pb2
from federation.wire.chunks import CHUNK_BYTES
from federation.wire.versions import PROTOCOL

SERVICE = pb.DESCRIPTOR.services_by_name["Director"]


class ScriptedDirector:
    """Holds what it is sent; `say` sends orders into the present session."""

    def __init__(self, built):
        self.hellos, self.reports, self.events, self.statuses, self.ends = [], [], [], [], []
        self.uploads = {}
        self.renewals, self.callers = [], []
        self.authority = built.authority
        self.files = {name: (built.work / name).read_bytes() for name in ("spec.json", "initial.safetensors")}
        self.roster = pb.Roster(
            sites=[pb.RosterSite(site=site, train_examples=1000, validation_examples=1000) for site in built.sites]
        )
        self.acknowledges = True
        self.last_sequence = 0
        self.cut_after = None
        self.changed = asyncio.Event()
        self._outbox = asyncio.Queue()
        for name in self.files:
            (built.work / name).unlink()

    def __getattr__(self, name):
        if name not in SERVICE.methods_by_name:
            raise AttributeError(name)

        async def refuse(request, call):
            raise NotFoundError(f"{name} is not in the script")

        return refuse

    def say(self, **message):
        self._outbox.put_nowait(pb.SuperviseReply(**message))

    def end_session(self):
        self._outbox.put_nowait(None)

    async def seen(self, condition):
        """Wait until what was received satisfies a condition."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def Supervise(self, requests, call):
        hello = (await anext(aiter(requests))).hello
        self.hellos.append(hello)
        self.callers.append(call.peer.serial)
        self._outbox = asyncio.Queue()
        self.changed.set()
        yield pb.SuperviseReply(
            welcome=pb.AggregatorWelcome(protocol=PROTOCOL.highest, last_sequence=self.last_sequence)
        )
        yield pb.SuperviseReply(roster=self.roster)
        reader = asyncio.create_task(self._read(requests))
        try:
            while (reply := await self._outbox.get()) is not None:
                yield reply
        finally:
            reader.cancel()
            await asyncio.wait({reader})

    async def _read(self, requests):
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "report":
                self.reports.append(request.report)
                if self.acknowledges:
                    self.last_sequence = request.report.sequence
                    self.say(acknowledge=pb.Acknowledge(sequence=self.last_sequence))
                if self.cut_after == request.report.round:
                    self.cut_after = None
                    self.end_session()
            elif kind == "end":
                self.ends.append(request.end)
                self.say(acknowledge=pb.Acknowledge(sequence=request.end.sequence))
                self.end_session()
            else:
                {"event": self.events, "status": self.statuses}[kind].append(getattr(request, kind))
            self.changed.set()

    async def Renew(self, request, call):
        issued = requests.renew(
            self.authority, call.peer.identity, request.signing_request, now=time.time(), lifetime_s=7200
        )
        self.renewals.append(issued.serial)
        self.changed.set()
        return pb.RenewReply(certificate=issued.pem)

    async def DownloadArtifact(self, request, call):
        if request.name not in self.files:
            raise NotFoundError(f"no {request.name}")
        data = self.files[request.name]
        digest = hashlib.sha256(data).hexdigest()
        yield pb.DownloadArtifactReply(artifact=pb.Artifact(name=request.name, bytes=len(data), digest=digest))
        for offset in range(request.offset, len(data), CHUNK_BYTES):
            yield pb.DownloadArtifactReply(
                chunk=tensors_pb2.Chunk(offset=offset, data=data[offset : offset + CHUNK_BYTES])
            )

    async def UploadArtifact(self, requests, call):
        artifact = (await anext(aiter(requests))).artifact
        data = b"".join([request.chunk.data async for request in requests])
        assert hashlib.sha256(data).hexdigest() == artifact.digest
        self.uploads[artifact.name] = data
        return pb.UploadArtifactReply(artifact=artifact)


@asynccontextmanager
async def directed(tmp_path, *, elements=10, names=("site-a", "site-b"), **plan):
    """A director whose aggregator is still to start, its server, and its address."""
    built = Stage(tmp_path, Plan(**{"sites": 2, "rounds": 2, **plan}), list(names), schema=flat_schema(elements))
    director = ScriptedDirector(built)
    rules = {method_path(method): frozenset({Role.AGGREGATOR}) for method in SERVICE.methods}
    authority = Authority(FEDERATION, rules, clock=SystemClock())
    server = RpcServer(authority, Metrics(), tls=built.tls_of(Role.DIRECTOR, "director"))
    server.add_service(SERVICE, director)
    port = await server.start()
    try:
        yield built, director, server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def scene(tmp_path, *, clock=None, **options):
    """A director and an aggregator that knows nothing but its configuration."""
    async with directed(tmp_path, **options) as (built, director, server, address):
        async with built.aggregator(clock=clock, director_address=address, roster=()) as running:
            running.server = server
            await director.seen(lambda: director.hellos)
            yield built, director, running


async def run_sites(built, running):
    sites = [built.site(name, running.address) for name in built.sites]
    results = await asyncio.gather(*(site.run() for site in sites))
    for site in sites:
        await site.vanish()
    return results


async def test_it_fetches_what_it_needs_reports_every_round_and_hands_over_the_results(tmp_path):
    async with scene(tmp_path, elements=400_000) as (built, director, running):
        assert await run_sites(built, running) == ["completed", "completed"]
        assert (await running.ended()).outcome == "completed"
    hello = director.hellos[0]
    assert (hello.experiment, hello.epoch, hello.address) == (EXPERIMENT, 1, running.address)
    assert hello.metrics_address == running.aggregator.metrics_address
    assert [report.round for report in director.reports] == [1, 2]
    assert director.ends[0].outcome == "completed" and director.ends[0].sequence > director.reports[-1].sequence
    assert sorted(director.uploads) == ["best.safetensors", "history.json", "last.safetensors"]
    assert any(event.kind == "site" for event in director.events)


async def test_reports_are_sent_again_until_they_are_acknowledged(tmp_path):
    async with scene(tmp_path, rounds=4) as (built, director, running):
        director.acknowledges = False
        director.cut_after = 2
        sites = asyncio.create_task(run_sites(built, running))
        await director.seen(lambda: len(director.hellos) == 2)
        assert await sites == ["completed", "completed"]
        await running.ended()
    rounds = [report.round for report in director.reports]
    assert rounds[:2] == [1, 2] and rounds[2:] == [1, 2, 3, 4]
    sequences = [report.sequence for report in director.reports[2:]]
    assert sequences == sorted(set(sequences))


async def test_a_stop_order_ends_the_experiment_for_the_sites_too(tmp_path):
    async with scene(tmp_path) as (built, director, running), built.site("site-a", running.address) as site:
        await site.connect()
        await site.ready()
        director.say(stop=pb.StopOrder(outcome="cancelled", reason="enough"))
        with pytest.raises(Finished, match="cancelled: enough"):
            await site.next_task()
        await site.vanish()
        record = await running.ended()
    assert (record.outcome, record.reason) == ("cancelled", "enough")
    assert director.ends == [] and director.uploads == {}


async def test_without_its_director_it_goes_on_and_then_ends_itself(tmp_path):
    clock = FakeClock(now=time.time())
    async with scene(tmp_path, clock=clock, rounds=1000) as (built, _director, running):
        sites = [built.site(name, running.address) for name in built.sites]
        for site in sites:
            await site.connect()
            await site.ready()
        await running.server.stop(0)
        for _ in range(3):
            for site in sites:
                await site.answer(await site.next_task())
        clock.advance(601)
        assert (await running.ended()).outcome == "orphaned"
        for site in sites:
            await site.vanish()


async def test_a_roster_without_a_site_and_a_revoked_certificate_end_sessions(tmp_path):
    async with scene(tmp_path) as (built, director, running):
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            serial = built.tls_of(Role.ENVOY, "site-a").facts().serial
            director.say(revoked=pb.RevokedSerials(serials=[f"{serial:x}"]))
            with pytest.raises(IdentityError, match="revoked"):
                while True:
                    await a.hear()
            director.say(roster=pb.Roster())
            with pytest.raises(IdentityError, match="no longer"):
                while True:
                    await b.hear()


async def test_too_few_sites_are_told_as_a_pause(tmp_path):
    clock = FakeClock(now=time.time())
    async with scene(tmp_path, clock=clock, minimum_sites=2) as (built, director, running):
        a, b = (built.site(name, running.address) for name in built.sites)
        for site in (a, b):
            await site.connect()
            await site.ready()
        await a.fail(await a.next_task(), permanent=True)
        await b.fail(await b.next_task())
        await director.seen(lambda: any(status.state == "paused" for status in director.statuses))
        assert "a round needs 2" in director.statuses[-1].reason
        for site in (a, b):
            await site.vanish()


async def test_a_director_that_takes_over_for_a_newer_epoch_ends_this_one(tmp_path):
    async with scene(tmp_path) as (_, director, running):
        director.say(stop=pb.StopOrder(outcome="superseded", reason="a newer epoch runs"))
        assert (await running.ended()).outcome == "superseded"


async def test_the_certificate_is_renewed_before_it_expires(tmp_path):
    clock = FakeClock(now=time.time())
    async with scene(tmp_path, clock=clock) as (built, director, running):
        tls = built.tls_of(Role.AGGREGATOR, EXPERIMENT)
        before = tls.facts().serial
        clock.advance(3600 * 2 / 3 + 10)
        await director.seen(lambda: len(director.hellos) == 2)  # a session with the new certificate
        assert director.callers == [before, *director.renewals]
        assert await run_sites(built, running) == ["completed", "completed"]
        await running.ended()
    assert tls.load() and tls.facts().serial == director.renewals[0] != before


# --- quarantine: a hostile site among honest ones

HONEST, HOSTILE = ("site-a", "site-b", "site-c", "site-d"), "site-e"
SITES = (*HONEST, HOSTILE)
QUARANTINE = {
    "names": SITES,
    "elements": 100,
    "sites": 5,
    "minimum_sites": 3,
    "rule": "median",
    "evaluate_every": 0,
    "quarantine": Quarantine(score="distance", threshold=3.0, rounds=2),
}


async def meet(built, address, *names):
    """Sites with a session that are ready; honest ones agree but for a little, the hostile one is far off."""
    sites = []
    for index, name in enumerate(names):
        target = 1000.0 if name == HOSTILE else 1.0 + index / 10
        sites.append(built.site(name, address, target=target))
        await sites[-1].connect()
        await sites[-1].ready()
    return sites


async def answer(*sites):
    """Let each site do its next task; return the rounds they are of."""
    rounds = []
    for site in sites:
        task = await site.next_task()
        await site.answer(task)
        rounds.append(task.round)
    return rounds


async def part(*sites):
    for site in sites:
        with pytest.raises(Finished):
            await site.next_task()
        await site.vanish()


def release(director, site):
    for row in director.roster.sites:
        row.releases = 1 if row.site == site else 0


def audits(director):
    return [event.text for event in director.events if event.kind == "audit"]


async def test_a_release_from_the_director_lets_a_quarantined_site_be_asked_again_once(tmp_path):
    async with scene(tmp_path, rounds=5, **QUARANTINE) as (built, director, running):
        sites = await meet(built, running.address, *SITES)
        assert [await answer(*sites) for _ in range(2)] == [[1] * 5, [2] * 5]
        await director.seen(lambda: director.reports and director.reports[-1].round == 2)
        (held,) = director.reports[-1].quarantined
        assert (held.site, held.since_round, held.releases) == (HOSTILE, 2, 0)
        assert "distance above 3 times the round's median in 2 rounds" in held.reason
        value = running.aggregator.metrics.registry.get_sample_value
        assert value("federation_sites_quarantined") == 1
        assert value("federation_update_score", {"score": "distance", "site": HOSTILE}) > 100
        release(director, HOSTILE)
        director.say(roster=director.roster)
        director.say(roster=director.roster)
        await director.seen(lambda: audits(director))
        assert await answer(*sites[:4]) == [3] * 4, "the round in progress was drawn before the release"
        sites[4].target = 1.2
        assert await answer(*sites) == [4] * 5
        await director.seen(lambda: director.reports[-1].round == 4)
        assert not director.reports[-1].quarantined and sites[4].trained == [1, 2, 4]
        director.end_session()  # the next session brings the same roster
        await director.seen(lambda: len(director.hellos) == 2)
        assert await answer(*sites) == [5] * 5
        await part(*sites)
        assert (await running.ended()).outcome == "completed"
    assert audits(director) == [f"{HOSTILE} is out of quarantine: the aggregator asks it again"]


async def test_quarantine_outlives_kill_9_and_so_does_a_release_that_came_meanwhile(tmp_path):
    async with directed(tmp_path, rounds=5, **QUARANTINE) as (built, director, _, address):
        async with built.process(1, director_address=address, roster=()) as first:
            sites = await meet(built, first.address, *SITES)
            assert [await answer(*sites) for _ in range(2)] == [[1] * 5, [2] * 5]
            assert await answer(*sites[:3]) == [3] * 3
            first.kill()
            await first.ended()
            for site in sites:
                await site.vanish()
        async with built.process(2, director_address=address, roster=()) as second:
            sites = await meet(built, second.address, HOSTILE, *HONEST)
            assert await answer(sites[4]) == [3], "what was admitted before is not asked for again"
            assert [(await site.next_task()).round for site in sites[1:]] == [4] * 4
            await director.seen(lambda: director.reports[-1].round == 3)
            assert [row.site for row in director.reports[-1].quarantined] == [HOSTILE]
            second.kill()
            await second.ended()
            assert sites[0].trained == [], "it was connected, and not asked"
            for site in sites:
                await site.vanish()
        release(director, HOSTILE)
        async with built.process(3, director_address=address, roster=()) as third:
            sites = await meet(built, third.address, HOSTILE, *HONEST)
            assert await answer(*sites[1:]) == [4] * 4, "that was drawn before the release"
            assert await answer(*sites) == [5] * 5
            await part(*sites)
            assert await third.ended() == 0
    assert len(audits(director)) == 1
