"""An envoy process with its real collaborators and trainers, against a director that says what the test tells it to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from federation import bundle
from federation.errors import ConflictError
from federation.names import Identity, Role
from federation.pki import requests
from federation.pki.authority import DAY_S
from federation.pki.known import load_known, pin
from federation.runtime import children
from federation.v1 import aggregator_pb2, director_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)
ANSWER = director_pb2.AssignmentAnswer
EXPERIMENT = "trial-00000001"


@dataclass
class EnvoyHost:
    """A machine with an envoy on it."""

    folder: Path
    started: list[children.Child] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "envoy.toml"

    @property
    def log(self) -> str:
        return (self.folder / "envoy.log").read_text()

    @property
    def experiment(self) -> Path:
        return self.folder / "state" / "experiments" / EXPERIMENT

    async def start(self, **environment: str) -> children.Child:
        child = await children.spawn(
            children.ChildSpec(
                name="envoy",
                argv=[sys.executable, "-c", "from envoy.command import main; main()", "--config", str(self.config)],
                env={"PATH": os.environ["PATH"], **environment},
                cwd=self.folder,
                log=self.folder / "envoy.log",
                folder=self.folder / "process",
            )
        )
        self.started.append(child)
        return child

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the owner's command line."""
        code = "from envoy.command import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            check=False,
        )

    async def owner(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self.command, *arguments)

    def pid(self, *parts: str) -> int:
        text = self.experiment.joinpath(*parts, "process.json").read_text()
        return children.ProcessIdentity.from_json(text).pid

    async def get(self, path: str) -> Any:
        port = int((self.folder / "state" / "monitoring.port").read_text())
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}{path}") as reply:
            text = await reply.text()
            return json.loads(text) if "json" in reply.content_type else text


@pytest.fixture
async def make_host(
    tmp_path: Path, pki: Any, director: Any, shard_code: Path
) -> AsyncIterator[Callable[..., EnvoyHost]]:
    hosts = []

    def make(policy: str = 'trust = "director"', shards: str = "", extra: str = "") -> EnvoyHost:
        folder = tmp_path / "host"
        folder.mkdir()
        tls = pki.issue(Role.ENVOY, "north")
        (folder / "envoy.toml").write_text(f"""
federation = "care"
director = "{director.address}"
authority = "{tls.authority}"
certificate = "{tls.certificate}"
key = "{tls.key}"
{extra}
[trainer]
sandbox = "none"
python_path = ["{shard_code}"]

[policy]
{policy}

[[shards]]
name = "ward"
kind = "numbers"
factory = "ward_shards:Numbers"
{shards}
""")
        hosts.append(EnvoyHost(folder))
        return hosts[-1]

    yield make
    for host in hosts:
        for folder in (*host.folder.glob("state/experiments/*/collaborator"), host.folder / "process"):
            child = children.adopt(folder)
            if child is not None:
                child.kill()
                await child.wait()
        for child in host.started:
            await child.wait()


async def _accepted(trial: Any, aggregator: Any, director: Any, host: EnvoyHost) -> tuple[Any, Any, children.Child]:
    """Bring an envoy up and its collaborator to the aggregator."""
    director.bundle = trial.archive.read_bytes()
    child = await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment(aggregator.address))
    answer = await session.hear("answer")
    assert answer.answer == ANSWER.ANSWER_ACCEPTED, answer.reason
    site = await aggregator.next_session()
    await site.hear("ready")
    return session, site, child


def _finish(site: Any) -> None:
    site.send(finish=aggregator_pb2.Finish(outcome="completed", reason="", epoch=site.epoch))


async def test_an_envoy_offers_its_shards_takes_part_and_cleans_up(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    director.bundle = trial.archive.read_bytes()
    director.cut_bundle_after = 300
    child = await host.start()
    session = await director.next_session()
    assert list(session.hello.running) == []
    [offer] = (await session.hear("offers")).shards
    assert (offer.name, offer.kind, offer.train_examples, list(offer.sample_shape)) == ("ward", "numbers", 8, [3])
    session.send(assignment=trial.assignment(aggregator.address))
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_ACCEPTED
    assert len(director.fetches) == 2
    assert director.fetches[1] >= 300, "a cut download goes on where it stopped"
    site = await aggregator.next_session()
    await site.hear("ready")
    collaborator, trainer = host.pid("collaborator"), host.pid("collaborator", "trainer")
    site.send(task=aggregator.task(trial.first_model))
    await aggregator.next_update()
    [group] = await host.get("/discovery")
    assert group["labels"] == {"role": "collaborator", "site": "north", "experiment": EXPERIMENT}
    async with aiohttp.ClientSession() as http, http.get(f"http://{group['targets'][0]}/metrics") as reply:
        assert "federation_updates_admitted_total 1.0" in await reply.text()
    async with aiohttp.ClientSession() as http, http.get(f"http://{group['targets'][0]}/ready") as reply:
        assert await reply.json() == {"ready": True, "checks": {"session": "ok", "trainer": "ok"}}
    received = f'federation_payload_bytes_total{{direction="in",payload="bundle"}} {float(len(director.bundle))}'
    assert received in await host.get("/metrics")
    assert (await host.get("/ready"))["ready"] is True

    # Asked again, an envoy answers alike and starts nothing twice.
    session.send(assignment=trial.assignment(aggregator.address))
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_ACCEPTED
    assert host.pid("collaborator") == collaborator
    _finish(site)
    status = await session.hear("status")
    assert (status.experiment, status.state, status.error_class) == (EXPERIMENT, "finished", "")
    await until_gone(collaborator)
    await until_gone(trainer)

    # Nor does it run it a second time once it is over.
    session.send(assignment=trial.assignment(aggregator.address))
    assert (await session.hear("status")).state == "finished"
    child.terminate()
    assert (await wait_for_end(child)).code == 0
    assert [path.name for path in host.experiment.iterdir()] == ["participation.json"]


async def test_a_shard_that_fails_is_named_and_the_others_are_offered(director: Any, make_host: Any) -> None:
    host = make_host(shards='[[shards]]\nname = "attic"\nkind = "numbers"\nfactory = "ward_shards:Broken"\n')
    await host.start()
    session = await director.next_session()
    assert [offer.name for offer in (await session.hear("offers")).shards] == ["ward"]
    assert "shard attic cannot be offered" in host.log
    assert "the ward's disk is not mounted" in host.log
    assert "attic" in (await host.get("/ready"))["checks"]["shards"]


async def test_an_unpinned_user_waits_for_approval_through_a_restart(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host(policy='trust = "pinned"')
    director.bundle = trial.archive.read_bytes()
    child = await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment(aggregator.address))
    answer = await session.hear("answer")
    fingerprint = bundle.fingerprint_of(trial.signed.signing_key)
    assert answer.answer == ANSWER.ANSWER_PENDING
    assert fingerprint in answer.reason
    child.terminate()
    await wait_for_end(child)

    child = await host.start()
    session = await director.next_session()
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_PENDING
    shown = json.loads((await host.owner("pending", "--json")).stdout)
    assert [(row["experiment"], row["submitter"]) for row in shown] == [(EXPERIMENT, "ada")]
    assert (await host.owner("approve", "no-such-00000000")).returncode == 1
    approved = await host.owner("approve", EXPERIMENT, "--pin")
    assert approved.returncode == 0, approved.stderr
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_ACCEPTED
    assert load_known(host.folder / "known.toml").users == {"ada": fingerprint}
    await (await aggregator.next_session()).hear("ready")


async def test_what_the_owner_refuses_stays_refused(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host(policy="manual_approval = true")
    pin(host.folder / "known.toml", "users", "ada", bundle.fingerprint_of(trial.signed.signing_key))
    await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment(aggregator.address))
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_PENDING
    assert (await host.owner("refuse", EXPERIMENT, "--reason", "not with these data")).returncode == 0
    for _ in range(2):
        answer = await session.hear("answer")
        assert (answer.answer, answer.reason) == (ANSWER.ANSWER_REFUSED, "not with these data")
        session.send(assignment=trial.assignment(aggregator.address))


async def test_an_assignment_is_refused_with_a_reason_its_user_can_read(
    make_trial: Any, director: Any, make_host: Any
) -> None:
    trial, host = make_trial(), make_host()
    director.bundle = trial.archive.read_bytes()
    await host.start()
    session = await director.next_session()
    spoils = {
        "not signed": {"signature": b""},
        "changed": {"manifest": trial.signed.manifest.replace(b"trial", b"trail")},
        "user eve submitted it": {"submitted_by": "eve"},
        "signed are": {"bundle_bytes": 1},
        "shard 'attic' is not offered here": {"shards": ["ward", "attic"]},
    }
    for number, (word, spoilt) in enumerate(spoils.items(), start=1):
        session.send(assignment=trial.assignment("127.0.0.1:1", experiment=f"trial-{number:08d}", **spoilt))
        answer = await session.hear("answer")
        assert (answer.experiment, answer.answer) == (f"trial-{number:08d}", ANSWER.ANSWER_REFUSED)
        assert word in answer.reason
    assert director.fetches == []

    # What is signed may still not be what comes.
    archive = bytearray(director.bundle)
    archive[len(archive) // 2] ^= 1
    director.bundle = bytes(archive)
    session.send(assignment=trial.assignment("127.0.0.1:1", experiment="trial-00000009"))
    answer = await session.hear("answer")
    assert (answer.experiment, answer.answer) == ("trial-00000009", ANSWER.ANSWER_REFUSED)
    assert director.fetches and not list(host.folder.glob("state/experiments/*/bundle"))


async def test_a_bundle_that_declares_more_than_the_owner_allows_is_not_fetched(
    make_trial: Any, director: Any, make_host: Any
) -> None:
    trial, host = make_trial(), make_host(extra="[limits]\nmax_bundle_bytes = 100000")
    large = bundle.FileEntry(path="experiment.py", size=100_001, sha256="0" * 64)
    trial = replace(trial, manifest=replace(trial.manifest, files=(large,)))
    director.bundle = trial.archive.read_bytes()
    await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment("127.0.0.1:1"))
    answer = await session.hear("answer")
    assert answer.answer == ANSWER.ANSWER_REFUSED
    assert "unpacks to 100001 bytes, at most 100000" in answer.reason
    assert director.fetches == []


async def test_an_envoy_says_once_that_it_is_ready_when_its_shards_are_offered(
    director: Any, make_host: Any, wait_for_end: Any
) -> None:
    host = make_host()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(host.folder / "notify"))
        listener.setblocking(False)
        child = await host.start(NOTIFY_SOCKET=str(host.folder / "notify"))
        said = asyncio.create_task(asyncio.get_running_loop().sock_recv(listener, 1000))
        session = await director.next_session()
        await session.hear("offers")
        assert await asyncio.wait_for(said, 20) == b"READY=1\nX_SHARDS=1"
        session.cut()
        session = await director.next_session()
        await session.hear("offers")
        child.terminate()
        await wait_for_end(child)
        assert listener.recv(1000) == b"STOPPING=1"


async def test_a_signature_is_accepted_for_one_experiment_only(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    session, _, _ = await _accepted(trial, aggregator, director, host)
    session.send(assignment=trial.assignment(aggregator.address, experiment="trial-00000002"))
    answer = await session.hear("answer")
    assert (answer.experiment, answer.answer) == ("trial-00000002", ANSWER.ANSWER_REFUSED)
    assert "used before" in answer.reason


async def test_a_killed_envoy_leaves_its_collaborator_running_and_the_next_one_adopts_it(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    _, site, child = await _accepted(trial, aggregator, director, host)
    collaborator = host.pid("collaborator")
    os.kill(child.identity.pid, signal.SIGKILL)
    await wait_for_end(child)
    site.send(task=aggregator.task(trial.first_model))
    await aggregator.next_update()  # the round goes on without an envoy

    child = await host.start()
    session = await director.next_session()
    assert list(session.hello.running) == [EXPERIMENT]
    assert host.pid("collaborator") == collaborator
    _finish(site)
    assert (await session.hear("status")).state == "finished"
    await until_gone(collaborator)


async def test_a_crashed_collaborator_is_started_again(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    session, _, _ = await _accepted(trial, aggregator, director, host)
    first, trainer = host.pid("collaborator"), host.pid("collaborator", "trainer")
    os.kill(first, signal.SIGKILL)
    await until_gone(trainer)
    site = await aggregator.next_session()
    await site.hear("ready")
    assert host.pid("collaborator") != first
    _finish(site)
    assert (await session.hear("status")).state == "finished"


async def test_a_withdrawn_experiment_leaves_nothing_before_the_next_question_is_answered(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    session, _, child = await _accepted(trial, aggregator, director, host)
    collaborator, trainer = host.pid("collaborator"), host.pid("collaborator", "trainer")
    session.send(withdrawal=director_pb2.Withdrawal(experiment=EXPERIMENT, reason="cancelled by ada"))
    session.send(assignment=trial.assignment(aggregator.address))
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_REFUSED
    await until_gone(collaborator)
    await until_gone(trainer)
    child.terminate()
    await wait_for_end(child)
    assert [path.name for path in host.experiment.iterdir()] == ["participation.json"]


async def test_sigterm_leaves_no_process_and_the_next_start_goes_on(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    _, _, child = await _accepted(trial, aggregator, director, host)
    collaborator, trainer = host.pid("collaborator"), host.pid("collaborator", "trainer")
    child.terminate()
    assert (await wait_for_end(child)).code == 0
    await until_gone(collaborator)
    await until_gone(trainer)
    await host.start()
    site = await aggregator.next_session()
    await site.hear("ready")


async def test_a_moved_aggregator_is_found(make_trial: Any, aggregator_of: Any, director: Any, make_host: Any) -> None:
    trial = make_trial()
    first, host = await aggregator_of(trial), make_host()
    session, site, _ = await _accepted(trial, first, director, host)
    second = await aggregator_of(trial)
    second.epoch = 2
    session.send(assignment=trial.assignment(second.address))
    await (await second.next_session()).hear("ready")
    assert second.hellos[0].last_epoch == 1
    assert await asyncio.wait_for(site.heard.get(), 10) is None


async def test_logs_leave_the_site_only_if_its_policy_releases_them(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any
) -> None:
    trial = make_trial("print('the loss looks fine')")
    aggregator, host = await aggregator_of(trial), make_host(policy='trust = "director"\nrelease_logs = true')
    session, site, _ = await _accepted(trial, aggregator, director, host)
    site.send(task=aggregator.task(trial.first_model))
    await aggregator.next_update()
    _finish(site)
    assert "the loss looks fine" in (await session.hear("logs")).lines


async def test_a_superseded_director_is_left_and_a_newer_one_found(director: Any, make_host: Any) -> None:
    host = make_host()
    director.epoch = 5
    await host.start()
    session = await director.next_session()
    await session.hear("offers")
    director.epoch = 4
    session.cut()
    stale = await director.next_session()
    assert stale.hello.director_epoch == 5
    director.epoch = 6
    session = await director.next_session()
    while session.outbox.empty() and session.hello.director_epoch != 5:
        session = await director.next_session()
    await session.hear("offers")
    assert stale.heard.empty()


async def test_an_envoy_that_is_superseded_attends_no_more_and_says_so(director: Any, make_host: Any) -> None:
    host = make_host()
    await host.start()
    session = await director.next_session()
    await session.hear("offers")
    session.call.end(ConflictError("superseded by a newer session of north: do not connect again"))
    async with asyncio.timeout(30):
        while "superseded" not in (await host.get("/ready"))["checks"]["director"]:
            pass
    assert "another envoy with this site's certificate" in host.log
    assert director.sessions.empty()


async def test_a_second_envoy_on_one_state_folder_is_refused(director: Any, make_host: Any, wait_for_end: Any) -> None:
    host = make_host()
    await host.start()
    await director.next_session()
    second = await host.owner()
    assert second.returncode == 2
    assert "another envoy uses state folder" in second.stderr


async def test_check_tells_an_owner_what_would_be_offered(director: Any, make_host: Any) -> None:
    host = make_host(shards='[[shards]]\nname = "attic"\nkind = "numbers"\nfactory = "ward_shards:Broken"\n')
    done = await host.owner("check", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert [shard["name"] for shard in found["shards"]] == ["ward"]
    assert found["problems"] == {"attic": "OSError"}
    assert (await host.owner("pending")).returncode == 3


def test_a_typo_in_the_settings_is_named_with_the_nearest_key(tmp_path: Path) -> None:
    (tmp_path / "envoy.toml").write_text('federation = "care"\ndirectr = "h:1"\n')
    done = EnvoyHost(tmp_path).command()
    assert done.returncode == 2
    assert "director" in done.stderr


async def test_a_certificate_is_renewed_in_the_middle_of_a_round(
    make_trial: Any,
    aggregator_of: Any,
    director: Any,
    make_host: Any,
    pki: Any,
    wait_for_end: Any,
    tmp_path: Path,
) -> None:
    tls = pki.issue_due(Role.ENVOY, "north")
    old = tls.facts().serial
    asked, granted = asyncio.Event(), asyncio.Event()
    issued = []

    async def renew(request: bytes) -> bytes:
        asked.set()
        await granted.wait()
        identity = tls.facts().identity
        issued.append(requests.renew(pki.authority, identity, request, now=time.time(), lifetime_s=30 * DAY_S))
        return issued[-1].pem

    director.renew = renew
    os.mkfifo(tmp_path / "gate")
    trial = make_trial(f"open({str(tmp_path / 'gate')!r}).read()")
    aggregator, host = await aggregator_of(trial), make_host()
    session, site, child = await _accepted(trial, aggregator, director, host)
    await asyncio.wait_for(asked.wait(), 30)
    assert (session.call.peer.serial, site.call.peer.serial) == (old, old)
    collaborator = host.pid("collaborator")
    site.send(task=aggregator.task(trial.first_model))
    gate = await asyncio.to_thread(open, tmp_path / "gate", "w")  # returns in the middle of the trainer's round

    granted.set()
    later, later_site = await director.next_session(), await aggregator.next_session()
    new = tls.check(now=time.time()).serial
    assert issued[0].serial == new == later.call.peer.serial == later_site.call.peer.serial != old
    assert list(later.hello.running) == [EXPERIMENT]
    # As the real ones do: the older session of one identity is ended.
    session.call.end(ConflictError("superseded by a newer session of envoy north"))
    site.call.end(ConflictError("superseded by a newer session of north: do not connect again"))
    assert [offer.name for offer in (await later.hear("offers")).shards] == ["ward"]
    await later_site.hear("ready")
    later_site.send(task=aggregator.task(trial.first_model))
    gate.close()
    update = await aggregator.next_update()
    assert update.header.round == 1
    assert host.pid("collaborator") == collaborator
    later_site.send(verdict=aggregator.verdict(update))
    _finish(later_site)
    assert (await later.hear("status")).state == "finished"
    assert (await host.get("/ready"))["ready"] is True
    [expiry] = re.findall(
        r'certificate_expiry_seconds{identity="spiffe://care/envoy/north"} (.*)', await host.get("/metrics")
    )
    assert float(expiry) == tls.facts().expires_at
    assert "attends no more" not in host.log
    assert director.sessions.empty() and aggregator.sessions.empty()
    child.terminate()
    assert (await wait_for_end(child)).code == 0


async def test_a_refused_renewal_is_said_and_tried_again(director: Any, make_host: Any, pki: Any) -> None:
    tls = pki.issue_due(Role.ENVOY, "north", left_s=30.0)  # so little that it is soon tried again
    asked: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue()

    async def renew(request: bytes) -> bytes:
        answer = asyncio.get_running_loop().create_future()
        asked.put_nowait((request, answer))
        return await answer

    director.renew = renew
    host = make_host()
    await host.start()
    session = await director.next_session()
    await session.hear("offers")
    _, answer = await asyncio.wait_for(asked.get(), 30)
    assert (await host.get("/ready"))["ready"] is True
    answer.set_exception(ConflictError("no more certificates today"))

    request, answer = await asyncio.wait_for(asked.get(), 30)
    found = await host.get("/ready")
    assert found["ready"] is False
    assert "in 0.0 days; not renewed: " in found["checks"]["certificate"]
    assert "no more certificates today" in found["checks"]["certificate"]
    assert "certificate not renewed" in host.log
    other = Identity(federation="care", role=Role.ENVOY, name="south")
    answer.set_result(requests.renew(pki.authority, other, request, now=time.time(), lifetime_s=DAY_S).pem)

    request, answer = await asyncio.wait_for(asked.get(), 30)
    assert "envoy/south" in (await host.get("/ready"))["checks"]["certificate"]
    before = tls.facts()
    answer.set_result(requests.renew(pki.authority, before.identity, request, now=time.time(), lifetime_s=DAY_S).pem)
    later = await director.next_session()
    assert later.call.peer.serial == tls.facts().serial != before.serial
    assert (await host.get("/ready"))["ready"] is True


async def test_an_owner_may_renew_by_himself(director: Any, make_host: Any, pki: Any, wait_for_end: Any) -> None:
    pki.issue_due(Role.ENVOY, "north")
    host = make_host(extra="renew = false")
    child = await host.start()
    await (await director.next_session()).hear("offers")
    child.terminate()
    assert (await wait_for_end(child)).code == 0
    assert "certificate not renewed" not in host.log  # nobody asked a director that refuses
