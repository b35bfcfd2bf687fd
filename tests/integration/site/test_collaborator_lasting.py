"""A collaborator, its aggregator and its envoy as they die, move, are superseded and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from federation.collaborator import local_socket
from federation.errors import ConflictError
from federation.names import ExperimentId, FederationName, aggregator_server_name
from federation.tensors.digest import payload_digest
from federation.wire.chunks import CHUNK_BYTES

from .envoy_hosts import finish

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize(
    ("elements", "told", "compression"),
    [
        pytest.param(8, False, "identity", id="digested as it is kept"),
        pytest.param(8, False, "top_k:0.5", id="encoded"),
        pytest.param(CHUNK_BYTES // 4, False, "identity", id="not digested"),
        pytest.param(CHUNK_BYTES // 4, True, "identity", id="digest told as it was admitted"),
    ],
)
async def test_a_killed_collaborator_sends_its_kept_update_again_without_training(
    make_trial: Any,
    make_site: Any,
    aggregator_of: Any,
    wait_for_end: Any,
    until_gone: Any,
    elements: int,
    compression: str,
    *,
    told: bool,
) -> None:
    trial = make_trial("open('trainings', 'a').write('x')", elements=elements, compression=compression)
    aggregator, site = await aggregator_of(trial), make_site(trial)
    aggregator.tells_digests = told
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model, inline=elements == 8))
    first = await aggregator.next_update()
    if told:
        session.send(task=aggregator.task(trial.first_model, train=False, inline=elements == 8))
        await session.hear("evaluated")  # one thing is done after the other, so what it was told is noted
    record = next(site.folder.rglob("retained/retained")).read_text()
    assert (payload_digest(first.data[0]).hex() in record) is (told or elements == 8)
    trainer = site.trainer_pid
    os.kill(child.identity.pid, signal.SIGKILL)
    await wait_for_end(child)
    await until_gone(trainer)

    aggregator.epoch = 2
    again = await site.start(aggregator.address)
    session = await aggregator.next_session()
    hello = aggregator.hellos[-1]
    assert (hello.last_epoch, hello.pending.round, hello.pending.update_id) == (1, 1, first.header.update_id)
    session.send(task=aggregator.task(trial.first_model, inline=elements == 8))
    await session.hear("ready")
    second = await aggregator.next_update()
    assert second.data == first.data
    assert second.header.update_id == first.header.update_id
    assert second.header.epoch == 2
    assert (site.folder / "workspace" / "trainings").read_text() == "x"
    finish(session)
    assert (await wait_for_end(again)).record.outcome == "finished"


async def test_a_superseded_aggregator_is_not_obeyed_and_the_newer_one_is_found(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    aggregator.epoch = 3
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    aggregator.epoch = 2
    session.cut()
    stale = await aggregator.next_session()
    assert await asyncio.wait_for(stale.heard.get(), 60) is None, "the site must not speak to a superseded aggregator"
    aggregator.epoch = 4
    session = await aggregator.next_session()
    while session.epoch != 4:
        session = await aggregator.next_session()
    await session.hear("ready")
    finish(session)
    await wait_for_end(child)


async def test_a_superseded_collaborator_does_not_dial_again(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, _, child, session = await take_part(trial)
    session.call.end(ConflictError("superseded by a newer session of north: do not connect again"))
    assert (await wait_for_end(child)).record.outcome == "superseded"
    assert aggregator.sessions.empty()


async def test_sigterm_lets_the_task_in_progress_end_and_leaves_no_process(
    make_trial: Any, take_part: Any, wait_for_end: Any, until_gone: Any, tmp_path: Any
) -> None:
    os.mkfifo(tmp_path / "gate")
    trial = make_trial(f"open({str(tmp_path / 'gate')!r}).read()")
    aggregator, site, child, session = await take_part(trial)
    session.send(task=aggregator.task(trial.first_model))
    # Opening a pipe for writing returns once the trainer has opened it for reading: it is in the middle of its round.
    gate = await asyncio.to_thread(open, tmp_path / "gate", "w")
    child.terminate()
    gate.close()
    assert (await aggregator.next_update()).header.round == 1
    status = await wait_for_end(child)
    assert (status.record.outcome, status.code) == ("stopped", 0)
    await until_gone(site.trainer_pid)


async def test_a_second_request_to_stop_stops_at_once(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, until_gone: Any, tmp_path: Any
) -> None:
    os.mkfifo(tmp_path / "gate")
    trial = make_trial(f"open({str(tmp_path / 'gate')!r}).read()")
    aggregator, site = await aggregator_of(trial), make_site(trial)
    lines: asyncio.Queue[local_socket.LineStream] = asyncio.Queue()

    async def envoy(stream: local_socket.LineStream) -> None:
        lines.put_nowait(stream)
        while await stream.receive() is not None:
            pass

    site.folder.mkdir()
    server = await local_socket.serve(site.folder / "envoy.sock", envoy)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    gate = await asyncio.to_thread(open, tmp_path / "gate", "w")
    line = await asyncio.wait_for(lines.get(), 60)
    await line.send({"type": "stop", "reason": "the envoy stops", "drain": True})
    await line.send({"type": "stop", "reason": "at once", "drain": True})
    status = await wait_for_end(child)
    assert (status.record.outcome, status.record.reason) == ("stopped", "the envoy stops")
    assert aggregator.updates.empty()
    await until_gone(site.trainer_pid)
    gate.close()
    await server.close()


async def test_a_site_that_dials_in_vain_goes_where_its_envoy_says(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    is_dialled = asyncio.Event()

    async def envoy(stream: local_socket.LineStream) -> None:
        await is_dialled.wait()
        name = aggregator_server_name(FederationName("care"), ExperimentId("trial-00000001"))
        await stream.send({"type": "aggregator", "address": aggregator.address, "server_name": name})
        while await stream.receive() is not None:
            pass

    site.folder.mkdir()
    server = await local_socket.serve(site.folder / "envoy.sock", envoy)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        silent.setblocking(False)
        child = await site.start(f"127.0.0.1:{silent.getsockname()[1]}")
        with (await asyncio.wait_for(asyncio.get_running_loop().sock_accept(silent), 30))[0]:
            is_dialled.set()
            session = await aggregator.next_session()
    finish(session)
    assert (await wait_for_end(child)).record.outcome == "finished"
    await server.close()


async def test_a_collaborator_without_its_envoy_ends_itself(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial, options={"orphan_s": 0.2})
    child = await site.start(aggregator.address)
    assert (await wait_for_end(child)).record.outcome == "orphaned"


def test_a_collaborator_and_an_envoy_know_no_torch() -> None:
    code = "import sys, federation.collaborator.process, envoy.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
