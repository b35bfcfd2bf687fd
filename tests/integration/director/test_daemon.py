"""Starting, stopping, starting again: lease, adoption, draining, bad settings, certificates, metrics."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from director.config import DirectorSettings
from director.daemon import serving
from director.leasing import describe_holder, is_dead
from director.store import lease
from director.store.database import Database
from director.store.tables import Audit, Experiment
from federation.client.doctor import examine
from federation.errors import ConfigurationError, ConflictError, IdentityError
from federation.names import Identity, Role, SiteName
from federation.pki.keys import key_pem, make_key
from federation.pki.requests import make_request
from federation.pki.revocation import parse_serial, revoke
from federation.pki.tokens import make_join_token, unpack_join_token
from federation.testing.clock import FakeClock
from federation.transport import handshakes
from federation.transport.credentials import TlsFiles, read_certificate
from federation.v1 import director_pb2 as pb
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    from pathlib import Path


def with_(settings: Any, section: str, **values: Any) -> Any:
    changed = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: changed})


async def get(port: int, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def test_a_second_director_on_the_same_database_refuses_to_start(world: Any, settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"another director .* holds the lease"):
        async with serving(settings, launcher=world.launcher):
            pass


async def test_each_start_has_a_higher_lease_epoch(settings: Any, pki: Any, launcher: Any, run_director: Any) -> None:
    epochs = []
    for _ in range(2):
        async with run_director(settings, pki, launcher) as world:
            envoy = await world.attend("north")
            assert envoy.welcome.director_epoch == world.director.lease_epoch
            epochs.append(world.director.lease_epoch)
    assert epochs == [1, 2]


def test_a_holder_is_dead_only_if_this_machine_knows() -> None:
    ours = json.loads(describe_holder())
    assert not is_dead(json.dumps(ours))
    ours["process"]["start_ticks"] += 1
    assert is_dead(json.dumps(ours))
    ours["host"] = "elsewhere"
    assert not is_dead(json.dumps(ours))
    assert not is_dead("somebody")


async def test_a_director_that_starts_again_adopts_an_aggregator_that_still_runs(
    settings: Any, pki: Any, launcher: Any, run_director: Any, make_package: Any, make_shard: Any
) -> None:
    async with run_director(settings, pki, launcher) as world:
        await world.attend("north", make_shard())
        experiment = await make_package().submit(world)
        process = await launcher.next()
        assert (await (await world.supervise(process)).welcomed()).last_sequence == 0
    assert not process.ended.done()
    async with run_director(settings, pki, launcher) as world:
        aggregator = await world.supervise(process)
        await aggregator.welcomed()
        envoy = await world.attend("north", make_shard())
        assert (await envoy.read_kind("assignment")).experiment == experiment
        assert launcher.started.empty()


async def test_a_director_that_starts_again_restarts_an_aggregator_that_died_meanwhile(
    settings: Any, pki: Any, launcher: Any, run_director: Any, make_package: Any, make_shard: Any
) -> None:
    async with run_director(settings, pki, launcher) as world:
        await world.attend("north", make_shard())
        experiment = await make_package().submit(world)
        process = await launcher.next()
    process.end()
    async with run_director(settings, pki, launcher) as world:
        again = await launcher.next()
        assert (again.order.experiment, again.order.epoch) == (experiment, 2)


async def test_draining_stops_aggregators_and_leaves_experiments_running(
    settings: Any, pki: Any, launcher: Any, run_director: Any, make_package: Any, make_shard: Any
) -> None:
    async with run_director(settings, pki, launcher) as world:
        await world.attend("north", make_shard())
        experiment = await make_package().submit(world)
        process = await launcher.next()
        await world.director.overseer.drain(asyncio.Event())
        assert process.stopped
        shown = await world.experiment(experiment)
        assert shown.summary.state == pb.EXPERIMENT_STATE_RUNNING
        assert launcher.started.empty()
    async with run_director(settings, pki, launcher) as world:
        assert (await launcher.next()).order.epoch == 2


async def test_a_second_signal_kills_aggregators_that_take_their_time(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    await world.attend("north", make_shard())
    await make_package().submit(world)
    process = await world.launcher.next()

    async def dawdle(grace_s: float) -> str:
        return str(await process.wait())

    process.stop = dawdle
    hurry = asyncio.Event()
    hurry.set()
    await asyncio.wait_for(world.director.overseer.drain(hurry), 60)
    assert process.ended.result() == "killed"


async def test_half_a_submission_is_taken_back_at_the_next_start(
    settings: Any, pki: Any, launcher: Any, run_director: Any, make_package: Any
) -> None:
    package = make_package()

    async with run_director(settings, pki, launcher) as world:
        experiment = await package.submit(world)
    database = Database(settings.database_url, lambda _: None)
    await database.transact(_set_submitted, experiment)
    await database.close()
    async with run_director(settings, pki, launcher) as world:
        assert not (settings.state / "artifacts" / experiment).exists()
        assert await package.submit(world)  # its nonce counts as unused again


def _set_submitted(session: Any, experiment: str) -> None:
    session.get(Experiment, experiment).state = "submitted"


async def test_a_port_in_use_is_named_and_nothing_stays_behind(settings: Any, pki: Any, launcher: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for section in ("listen", "metrics"):
            with pytest.raises(ConfigurationError, match=str(port)):
                async with serving(with_(settings, section, port=port), launcher=launcher):
                    pass
    async with serving(settings, launcher=launcher):
        pass  # the lease was given up


async def test_a_certificate_of_another_role_is_refused_at_the_start(settings: Any, pki: Any, launcher: Any) -> None:
    tls = pki.issue(Role.ENVOY, "north")
    wrong = with_(settings, "tls", certificate=tls.certificate, key=tls.key)
    with pytest.raises(ConfigurationError, match="expected a director of 'test'"):
        async with serving(wrong, launcher=launcher):
            pass


async def test_without_certificates_a_user_of_this_machine_is_who_he_says(tmp_path: Path, launcher: Any) -> None:
    settings = DirectorSettings(federation="test", state=tmp_path / "state", listen={"port": 0, "insecure": True})
    async with serving(settings, launcher=launcher) as director:
        path = tmp_path / "client.toml"
        path.write_text(f'federation = "test"\naddress = "127.0.0.1:{director.port}"\ninsecure_user = "alice"\n')
        found = await asyncio.to_thread(lambda: {finding.check: finding for finding in examine(path)})
    assert found["identity"].found == "the director takes us for spiffe://test/user/alice"
    assert found["files"].outcome == "warning"
    assert "certificate chain" not in found


async def test_doctor_leaves_no_refused_handshake_in_the_directors_counters(
    settings: Any, pki: Any, launcher: Any
) -> None:
    clock = FakeClock(now=time.time())
    async with serving(settings, launcher=launcher, clock=clock) as director:
        folder = pki.issue(Role.USER, "alice").certificate.parent
        (folder / "client.toml").write_text(f'federation = "test"\naddress = "127.0.0.1:{director.port}"\n')
        found = await asyncio.to_thread(lambda: {finding.check: finding for finding in examine(folder)})
        assert found["reachable"].found == f"127.0.0.1:{director.port} accepts connections"
        assert found["certificate chain"].outcome == "good"
        clock.advance(handshakes.PATIENCE_S + 1)  # nobody calls any more over a connection that was begun
        _, text = await get(director.metrics_port, "/metrics")
        refused = [line for line in text.splitlines() if line.startswith("federation_refused_calls_total{")]
        assert [line for line in refused if "handshake" in line] == []


async def test_the_metrics_address_tells_of_experiments_and_lists_aggregators(
    world: Any, make_package: Any, make_shard: Any
) -> None:
    await world.attend("north", make_shard())
    experiment = await make_package().submit(world)
    waiting = await make_package(sites=5).submit(world)
    await world.watch_until(waiting, lambda event: event.kind == "assignment")
    aggregator = await world.supervise(await world.launcher.next())
    await aggregator.welcomed()
    status, text = await get(world.director.metrics_port, "/metrics")
    assert status == 200
    assert 'federation_experiments{state="running"} 1.0' in text
    assert "federation_queue_depth 1.0" in text
    assert 'federation_sites{state="online"} 1.0' in text
    assert 'federation_certificate_expiry_seconds{identity="spiffe://test/director/director"}' in text
    status, text = await get(world.director.metrics_port, "/discovery")
    assert json.loads(text) == [{"targets": ["127.0.0.1:9"], "labels": {"experiment": experiment}}]
    assert await get(world.director.metrics_port, "/ready") == (
        200,
        json.dumps({"ready": True, "checks": {"database": "ok", "lease": "ok"}}),
    )


async def test_describe_tells_everybody_who_asks_and_who_answers(world: Any) -> None:
    reply = await world.stub(Role.USER, "alice").unary("Describe", pb.DescribeRequest())
    assert (reply.federation, reply.caller) == ("test", "spiffe://test/user/alice")
    assert abs(reply.now - time.time()) < 60
    assert reply.certificate_expires_at > reply.now


async def test_a_join_token_becomes_an_envoys_certificate_once(world: Any, pki: Any, tmp_path: Path) -> None:
    token = make_join_token(pki.authority, SiteName("west"), now=time.time())
    unpack_join_token(token, tmp_path / "token")
    stub = world.stub(Role.JOINER, "west", tls=TlsFiles.in_folder(tmp_path / "token"))
    request = pb.EnrolRequest(signing_request=make_request(make_key()))
    reply = await stub.unary("Enrol", request)
    facts = read_certificate(reply.certificate)
    assert facts.identity == Identity(federation=world.settings.federation, role=Role.ENVOY, name="west")
    with pytest.raises(IdentityError, match="was used before"):
        await stub.unary("Enrol", request)
    with pytest.raises(IdentityError):
        await world.stub(Role.ENVOY, "west").unary("Enrol", request)


async def test_a_certificate_is_renewed_for_who_one_is(world: Any) -> None:
    request = pb.RenewRequest(signing_request=make_request(make_key()))
    reply = await world.stub(Role.USER, "alice").unary("Renew", request)
    assert read_certificate(reply.certificate).identity.spiffe == "spiffe://test/user/alice"
    with pytest.raises(IdentityError):
        await world.stub(Role.JOINER, "west").unary("Renew", request)


async def recorded_serials(world: Any, actor: str, action: str) -> list[int]:
    """Return the serial numbers that the audit trail names, as an operator would look them up."""
    database = Database(world.settings.database_url, lambda _: None)
    try:
        wanted = select(Audit.detail).where(Audit.actor == actor, Audit.action == action, Audit.admitted)
        details = await database.transact(lambda session: session.scalars(wanted).all())
    finally:
        await database.close()
    return [
        parse_serial(found[1]) for detail in details if (found := re.search(r"serial ([0-9a-f]+), expires", detail))
    ]


async def test_what_enrolment_and_renewal_issued_can_be_revoked_by_its_recorded_serial(
    settings: Any, pki: Any, launcher: Any, run_director: Any, tmp_path: Path
) -> None:
    async with run_director(with_(settings, "times", lease_s=1.0), pki, launcher) as world:
        token = make_join_token(pki.authority, SiteName("west"), now=time.time())
        unpack_join_token(token, tmp_path / "token")
        joiner = world.stub(Role.JOINER, "west", tls=TlsFiles.in_folder(tmp_path / "token"))
        enrolled = await joiner.unary("Enrol", pb.EnrolRequest(signing_request=make_request(make_key())))
        serials = await recorded_serials(world, "spiffe://test/joiner/west", "Enrol")
        assert serials == [read_certificate(enrolled.certificate).serial]

        key = make_key()
        request = pb.RenewRequest(signing_request=make_request(key))
        reply = await world.stub(Role.ENVOY, "west").unary("Renew", request)
        tls = TlsFiles.in_folder(pki.folder / "envoy-west")
        tls.certificate.write_bytes(reply.certificate)
        tls.key.write_bytes(key_pem(key))
        session = world.stub(Role.ENVOY, "west", tls=tls).bidi("Attend")
        await session.write(pb.AttendRequest(hello=pb.EnvoyHello(protocol=range_to_proto())))
        assert (await session.read()).WhichOneof("message") == "welcome"
        [serial] = await recorded_serials(world, "spiffe://test/envoy/west", "Renew")
        revoke(settings.tls.revoked, serial)
        with pytest.raises(IdentityError, match="is revoked"):
            await asyncio.wait_for(session.read(), 60)


async def test_the_session_of_a_revoked_envoy_ends_and_aggregators_are_told(
    settings: Any, pki: Any, launcher: Any, run_director: Any, make_package: Any, make_shard: Any
) -> None:
    async with run_director(with_(settings, "times", lease_s=1.0), pki, launcher) as world:
        envoy = await world.attend("north", make_shard())
        await make_package().submit(world)
        aggregator = await world.supervise(await launcher.next())
        await aggregator.welcomed()
        serial = TlsFiles.in_folder(pki.folder / "envoy-north").facts().serial
        await envoy.read_kind("assignment")
        revoke(settings.tls.revoked, serial)
        with pytest.raises(IdentityError, match="is revoked"):
            await envoy.read()
        assert list((await aggregator.read_kind("revoked")).serials) == [f"{serial:x}"]


async def test_a_director_whose_lease_was_taken_stops(
    settings: Any, pki: Any, launcher: Any, run_director: Any
) -> None:
    async def lose_it() -> None:
        async with run_director(with_(settings, "times", lease_s=1.0), pki, launcher):
            database = Database(settings.database_url, lambda _: None)
            await database.transact(lease.take, holder="other", now=time.time(), lasts_s=9, is_dead=lambda _: True)
            await database.close()
            await asyncio.wait_for(asyncio.Event().wait(), 60)

    with pytest.raises(ConflictError, match="taken by another director"):
        await lose_it()
