"""An envoy process with its real collaborators and trainers, against a director that says what the test tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from .envoy_hosts import ANSWER, EXPERIMENT, EnvoyHost, finish

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)


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
    site.send(task=aggregator.task(trial.first_model, train=False))
    await site.hear("evaluated")  # one thing is done after the other, so what came of the update is noted
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
    finish(site)
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


async def test_trainers_that_are_killed_while_they_describe_the_only_shard_are_no_verdict_on_the_shard(
    director: Any, make_host: Any, shard_code: Path
) -> None:
    deaths = shard_code / "deaths"
    dies = f"""
import os, pathlib
deaths = pathlib.Path({str(deaths)!r})
if not deaths.exists() or deaths.stat().st_size < 3:
    with deaths.open("a") as file:
        file.write("+")
    os.kill(os.getpid(), 9)
"""
    module = shard_code / "ward_shards.py"
    module.write_text(dies + module.read_text())
    host = make_host()
    await host.start()
    session = await director.next_session()
    assert [offer.name for offer in (await session.hear("offers")).shards] == ["ward"]
    assert deaths.read_text() == "+++"


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
        assert await asyncio.wait_for(said, 60) == b"READY=1\nX_SHARDS=1"
        session.cut()
        session = await director.next_session()
        await session.hear("offers")
        child.terminate()
        await wait_for_end(child)
        assert listener.recv(1000) == b"STOPPING=1"


async def test_logs_leave_the_site_only_if_its_policy_releases_them(
    attend: Any,
) -> None:
    here = await attend("print('the loss looks fine')", policy='trust = "director"\nrelease_logs = true')
    here.site.send(task=here.aggregator.task(here.trial.first_model))
    await here.aggregator.next_update()
    finish(here.site)
    assert "the loss looks fine" in (await here.session.hear("logs")).lines


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
