"""Models and updates over lines of their own, between a real aggregator and a collaborator's downloads and uploads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time

import numpy as np
import pytest

from federation.errors import Refusal, StorageError, TaskError, TransportError, UpdateRejectedError
from federation.names import Role
from federation.pki.authority import issue_identity
from federation.runtime.records import read_exit_record
from federation.storage.safetensors_files import read_model
from federation.tensors.digest import payload_digest
from federation.testing.aggregators import EXPERIMENT, flat_schema
from federation.testing.clock import FakeClock
from federation.testing.scripted_sites import Finished
from federation.transport.authority import Peer
from federation.transport.bulk import MOST_OF_ONE
from federation.v1 import aggregator_pb2 as pb

from .cables import DOWN, UP, Cable, LineSite, Place
from .stages import history, run_all, stage

ELEMENTS = 1_100_000
NBYTES = 4 * ELEMENTS
TWICE = 2 * ELEMENTS
"""What is left of it after a cut is still worth a line."""


def build(tmp_path, sites="a", elements=ELEMENTS, **plan):
    return stage(tmp_path, sites, flat_schema(elements), **{"rounds": 1, "evaluate_every": 0, **plan})


def place(built, tmp_path, name="a", **fields):
    folder = tmp_path / f"site-{name}"
    folder.mkdir(exist_ok=True)
    return Place(folder, built.spec, EXPERIMENT, **fields)


def made(built, tmp_path, running, name="a", **options):
    if "place" not in options:
        options["place"] = place(built, tmp_path, name)
    return built.site(f"site-{name}", running.address, LineSite, **options)


async def begin(*sites):
    for site in sites:
        await site.connect()
        await site.ready()


def weight(built):
    return read_model(built.work / "artifacts" / "last.safetensors")[1]["weight"]


def update_of(site, task, elements=ELEMENTS):
    data = np.full(elements, 0.5, np.float32).tobytes()
    return site.header(task, {"delta": data}, {"loss": 1.0}), {"delta": data}


@contextlib.asynccontextmanager
async def stalled(cable, sending):
    """Have a transfer under way that stalls, and leave it ended."""
    task = asyncio.create_task(sending)
    try:
        waiting = asyncio.create_task(cable.stalled.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        assert cable.stalled.is_set(), task.exception()
        yield task
    finally:
        task.cancel()
        waiting.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)


def line_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("line")]


@pytest.mark.parametrize("plan", [{}, {"algorithm": "fedbuff", "options": {"k": 3}}], ids=["rounds", "buffered"])
async def test_large_payloads_go_over_lines_and_not_in_the_calls(tmp_path, plan):
    built = build(tmp_path, "abc", **plan)
    async with Cable() as cable, built.aggregator() as running:
        sites = [made(built, tmp_path, running, name, cable=cable) for name in "abc"]
        assert await run_all(*sites) == ["completed"] * 3
        await running.ended()
    assert (weight(built) == 0.5).all()
    assert cable.total(DOWN) >= 3 * NBYTES and cable.total(UP) >= 3 * NBYTES
    assert line_threads() == []


async def test_when_all_lines_are_given_out_they_go_in_the_calls(tmp_path):
    built = build(tmp_path)
    async with Cable() as cable, built.aggregator() as running:
        peer = Peer(
            identity=built.tls_of(Role.ENVOY, "site-a").facts().identity, expires_at=0, serial=0, fingerprint=""
        )
        with contextlib.ExitStack() as stack:
            for _ in range(MOST_OF_ONE):
                stack.enter_context(running.aggregator.driver.lines.issue(peer, NBYTES))
            site = made(built, tmp_path, running, cable=cable)
            assert await run_all(site) == ["completed"]
        await running.ended()
    assert site.place.links.current.bulk.is_usable, "there may be one the next time"
    assert cable.passed == [] and (weight(built) == 0.5).all()


@pytest.mark.parametrize("way", ["closed", "plaintext"])
async def test_a_site_without_a_line_says_so_once_and_tries_again_in_its_next_session(tmp_path, caplog, way):
    built = build(tmp_path, rounds=2)

    async def serve(reader, writer):
        writer.write(b"SSH-2.0-something\r\n")
        writer.close()

    other = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    if way == "closed":
        other.close()
    async with Cable() as cable, built.aggregator() as running, made(built, tmp_path, running, bulk_port=port) as site:
        await begin(site)
        await site.answer(await site.next_task())
        said = [record for record in caplog.records if "travel inside calls" in record.getMessage()]
        assert len(said) == 1 and f"no line to 127.0.0.1:{port}" in said[0].getMessage()
        await site.cut()
        site.bulk_port, site.cable = None, cable
        await begin(site)
        await site.answer(await site.next_task())
        await running.ended()
    other.close()
    assert cable.total(DOWN) >= NBYTES and cable.total(UP) >= NBYTES
    assert (weight(built) == 0.75).all()


@pytest.mark.parametrize("way", [UP, DOWN])
async def test_a_line_that_is_cut_goes_on_where_it_was(tmp_path, way):
    built = build(tmp_path, elements=TWICE)
    async with Cable(cut_after={way: NBYTES // 2}) as cable, built.aggregator() as running:
        assert await run_all(made(built, tmp_path, running, cable=cable)) == ["completed"]
        await running.ended()
    assert (weight(built) == 0.5).all()
    first, second = (line[way] for line in cable.passed if line[way] > 100_000)
    assert first >= NBYTES // 2 and second < 2 * NBYTES - NBYTES // 4
    assert len(cable.passed) == 3


async def test_a_model_that_is_whole_when_its_call_breaks_is_not_fetched_again(tmp_path):
    built = build(tmp_path)
    async with Cable(ends_badly=True) as cable, built.aggregator() as running:
        async with made(built, tmp_path, running, cable=cable) as site:
            await begin(site)
            task = await site.next_task()
            assert payload_digest(await site.load(task)) == task.payloads[0].digest
    pulls = running.aggregator.metrics.registry.get_sample_value(
        "federation_rpc_total", {"method": "PullModel", "role": "envoy", "code": "UNAVAILABLE"}
    )
    assert pulls == 1 and len(cable.passed) == 1


async def test_a_payload_that_is_retired_while_its_pull_waits_for_the_line_is_still_sent(tmp_path):
    built = build(tmp_path)
    async with built.aggregator() as running, made(built, tmp_path, running) as site:
        await begin(site)
        payload = (await site.next_task()).payloads[0]
        request = pb.PullModelRequest(experiment=site.meeting.experiment, digest=payload.digest, takes_ticket=True)
        async with site.stub.server_stream("PullModel", request) as replies:
            ticket = (await replies.read()).ticket
            offers = running.aggregator.driver.offers
            offers.retire(offers.find(payload.digest))
            came = bytearray(NBYTES)

            def fetch(line):
                assert line.receive_into(memoryview(came)) == NBYTES

            await site.place.links.current.bulk.carry(ticket, NBYTES, fetch)
            assert await replies.read() is None
        assert payload_digest(came) == payload.digest


async def test_what_is_not_finite_is_refused_as_it_comes_over_the_line(tmp_path):
    built = build(tmp_path, "ab", quorum=1)
    async with Cable() as cable, built.aggregator() as running:
        bad, good = made(built, tmp_path, running, cable=cable, has_digests=True), made(built, tmp_path, running, "b")
        async with bad, good:
            await begin(bad, good)
            header, _ = update_of(bad, await bad.next_task())
            spoilt = np.full(ELEMENTS, 0.5, np.float32)
            spoilt[ELEMENTS // 2] = np.nan
            with pytest.raises(UpdateRejectedError) as caught:
                await bad.send(None, header, {"delta": spoilt.tobytes()})
            await good.answer(await good.next_task())
            await running.ended()
    assert caught.value.refusal is Refusal.NOT_FINITE and cable.total(UP) >= NBYTES // 2
    assert [site["outcome"] for site in history(built)["rounds"][0]["sites"]] == ["refused", "counted"]


async def test_what_is_not_finite_leaves_no_site_that_has_not_checked_it_yet(tmp_path):
    built = build(tmp_path)
    async with Cable() as cable, built.aggregator() as running, made(built, tmp_path, running, cable=cable) as site:
        await begin(site)
        header, payloads = update_of(site, await site.next_task())
        spoilt = np.full(ELEMENTS, 0.5, np.float32)
        spoilt[ELEMENTS // 2] = np.inf
        with pytest.raises(TaskError, match="NotFinite"):
            await site.send(None, header, {"delta": spoilt.tobytes()})
        await site.send(None, header, payloads)
        await running.ended()
    assert (weight(built) == 0.5).all()


async def test_a_file_that_becomes_shorter_is_the_sites_own_fault_and_ends_the_sending(tmp_path):
    elements = 3_000_000
    built = build(tmp_path, elements=elements)
    async with Cable(stall_after={UP: 1 << 20}) as cable, built.aggregator() as running:
        async with made(built, tmp_path, running, cable=cable) as site:
            await begin(site)
            header, payloads = update_of(site, await site.next_task(), elements)
            async with stalled(cable, site.send(None, header, payloads)) as sending:
                os.truncate(site.files / "delta", 4 * elements - 1)
                cable.go_on.set()
                with pytest.raises(StorageError, match="became shorter"):
                    await sending


async def test_a_round_that_closes_ends_a_stalled_line_at_once(tmp_path):
    built = build(tmp_path, "ab", quorum=1, deadline_s=600)
    clock = FakeClock(now=time.time())
    async with Cable(stall_after={UP: 1 << 20}) as cable, built.aggregator(clock=clock) as running:
        slow, quick = made(built, tmp_path, running, cable=cable), made(built, tmp_path, running, "b")
        async with slow, quick:
            await begin(slow, quick)
            await quick.answer(await quick.next_task())
            header, payloads = update_of(slow, await slow.next_task())
            async with stalled(cable, slow.send(None, header, payloads)) as sending:
                clock.advance(600)
                with pytest.raises(UpdateRejectedError) as caught:
                    await sending
            await running.ended()
    assert caught.value.refusal is Refusal.CLOSED_ROUND
    assert (weight(built) == 0.5).all() and line_threads() == []


async def test_a_newer_upload_supersedes_one_whose_line_stalls(tmp_path):
    built = build(tmp_path, elements=TWICE)
    async with Cable(stall_after={UP: 1 << 20}) as cable, built.aggregator() as running:
        patient = place(built, tmp_path, clock=FakeClock())
        async with made(built, tmp_path, running, cable=cable, place=patient) as site:
            await begin(site)
            header, payloads = update_of(site, await site.next_task(), TWICE)
            async with stalled(cable, site.send(None, header, payloads)) as older:
                newer = place(built, tmp_path, "a-again")
                newer.links.set(site.place.links.current)
                cable.stall_after.clear()
                site.place = newer
                await site.send(None, header, payloads)
                await running.ended()
                assert not older.done(), "it waits before it tries again"
        admitted = running.aggregator.metrics.registry.get_sample_value("federation_updates_admitted_total")
    assert admitted == 1 and cable.passed[1][UP] < 2 * NBYTES, "it went on where the older one was"


async def test_a_site_that_is_lost_in_its_line_comes_back_and_goes_on(tmp_path):
    built = build(tmp_path, elements=TWICE)
    async with Cable(stall_after={UP: 2 << 20}) as cable, built.aggregator(site_grace_s=30) as running:
        site = made(built, tmp_path, running, cable=cable)
        await begin(site)
        header, payloads = update_of(site, await site.next_task(), TWICE)
        async with stalled(cable, site.send(None, header, payloads)):
            await site.vanish()
        cable.stall_after.clear()
        async with made(built, tmp_path, running, cable=cable, place=place(built, tmp_path)) as back:
            back.pending = pb.PendingUpdate(round=header.round, attempt=header.attempt, update_id=header.update_id)
            await begin(back)
            assert (await back.next_task()).attempt == header.attempt
            await back.send(None, header, payloads)
            await running.ended()
    assert (weight(built) == 0.5).all()
    assert 0 < cable.passed[-1][UP] < 2 * NBYTES


@pytest.mark.parametrize("way", [UP, DOWN])
async def test_an_aggregator_that_is_told_to_stop_does_not_wait_for_a_stalled_line(tmp_path, way):
    built = build(tmp_path, elements=4 * ELEMENTS)
    grace_s = 0.1 if way == DOWN else 3600.0  # a pull may take its time, an upload goes on with the next aggregator
    async with Cable(stall_after={way: 1 << 20}) as cable, built.process(1, stop_grace_s=grace_s) as running:
        async with made(built, tmp_path, running, cable=cable) as site:
            await begin(site)
            async with stalled(cable, site.answer(await site.next_task())):
                running.child.terminate()
                assert await running.ended() == 0
    assert read_exit_record(built.work).outcome == "drained"


@pytest.mark.parametrize("way", [UP, DOWN])
async def test_an_aggregator_killed_in_the_middle_of_a_line_is_met_by_the_next_and_the_model_is_the_same(tmp_path, way):
    built = build(tmp_path)
    kept = place(built, tmp_path)
    async with Cable(stall_after={way: 2 << 20}) as cable:
        async with built.process(1) as first:
            site = made(built, tmp_path, first, cable=cable, place=kept)
            await begin(site)
            task = await site.next_task()
            answering = asyncio.create_task(site.answer(task))
            await cable.stalled.wait()
            first.kill()
            kept.links.set(None)  # as whoever listens to the session would: the next aggregator knows nobody yet
            await first.ended()
        cable.stall_after.clear()
        cable.go_on.set()
        async with built.process(2) as second, made(built, tmp_path, second, cable=cable, place=kept) as again:
            await begin(again)
            assert (await again.next_task()).payloads[0].digest == task.payloads[0].digest
            await answering
            with pytest.raises(Finished):
                await again.next_task()
            assert await second.ended() == 0
        await site.vanish()
    assert (weight(built) == 0.5).all()


async def test_a_full_disk_under_the_spool_in_the_middle_of_a_line_is_named(tmp_path, files_of_at_most):
    built = build(tmp_path, max_failures=1)
    async with (
        Cable(stall_after={UP: 1 << 20}) as cable,
        built.aggregator() as running,
        made(built, tmp_path, running, cable=cable) as site,
    ):
        await begin(site)
        for _ in range(2):
            header, payloads = update_of(site, await site.next_task())
            cable.stalled.clear()
            cable.go_on.clear()
            async with stalled(cable, site.send(None, header, payloads)) as sending:
                with files_of_at_most(2 << 20), pytest.raises(StorageError):
                    cable.go_on.set()
                    await sending
        record = await running.ended()
    assert record.outcome == "failed" and "DiskFullError" in record.reason


async def test_the_next_session_dials_with_the_renewed_certificate(tmp_path):
    built = build(tmp_path)
    kept = place(built, tmp_path)
    async with Cable() as cable, built.aggregator() as running:
        async with made(built, tmp_path, running, cable=cable, place=kept) as site:
            await begin(site)
            task = await site.next_task()
            await site.load(task)
            tls = built.tls_of(Role.ENVOY, "site-a")
            issue_identity(
                built.authority, tls.facts().identity, tls.key.parent, now=time.time(), lifetime_s=3600, force=True
            )
            async with made(built, tmp_path, running, cable=cable, place=kept) as renewed:
                await begin(renewed)
                await renewed.answer(await renewed.next_task())
                await running.ended()
        refused = running.aggregator.metrics.refused_calls_total.collect()[0].samples
    assert cable.total(UP) >= NBYTES
    assert not [sample for sample in refused if sample.value and sample.name.endswith("_total")]


async def test_a_collaborator_that_stops_while_the_port_never_answers_leaves_at_once(tmp_path):
    built = build(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        port = silent.getsockname()[1]
        async with built.aggregator() as running, made(built, tmp_path, running, bulk_port=port) as site:
            await begin(site)
            loading = asyncio.create_task(site.load(await site.next_task()))
            taken, _ = await asyncio.get_running_loop().sock_accept(silent)
            with taken:
                loading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await loading
                with contextlib.suppress(TransportError):
                    await site.cut()
