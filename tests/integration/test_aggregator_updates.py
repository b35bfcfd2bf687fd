"""Updates on their way into a real aggregator: which are admitted, what a cut or a lie costs, and whom.

Scripted sites over real mutual TLS, in one process; no director, no trainer.
"""

from __future__ import annotations

import asyncio
import contextlib
import string
import time

import numpy as np
import pytest

from federation.aggregator.turns import CROWD_PIECE_BYTES, turns_here
from federation.errors import (
    MalformedMessageError,
    Refusal,
    StorageError,
    UpdateRejectedError,
)
from federation.storage.safetensors_files import read_model
from federation.tensors.digest import payload_digest
from federation.testing.aggregators import flat_schema
from federation.testing.clock import FakeClock
from federation.testing.honest_sites import HonestSite
from federation.testing.misbehaving_sites import LateSite, Lie, LyingSite, VanishingSite
from federation.testing.scripted_sites import Finished
from federation.v1 import aggregator_pb2 as pb
from federation.wire.chunks import CHUNK_BYTES

from .stages import history, run_all, stage

LIES = [lie for lie in Lie if lie not in (Lie.CLOSED_ROUND, Lie.STALE_EPOCH)]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name.lower())
async def test_a_lying_site_is_refused_and_the_round_goes_on_with_its_quorum(tmp_path, lie):
    built = stage(tmp_path, quorum=1, rounds=2)
    async with built.aggregator() as running:
        liar = built.site("site-a", running.address, LyingSite, lie=lie)
        assert await run_all(liar, built.site("site-b", running.address)) == ["completed", "completed"]
        record = await running.ended()
        refused = running.aggregator.metrics.registry.get_sample_value(
            "federation_updates_refused_total", {"reason": lie.value}
        )
    assert record.outcome == "completed" and refused == 2
    assert [error.refusal.value for error in liar.refusals] == [lie.value] * 2
    first = history(built)["rounds"][0]["sites"][0]
    assert first["outcome"] == "refused" and lie.value in first["reason"]
    assert history(built)["degraded"]


@pytest.mark.parametrize("lie", [Lie.CLOSED_ROUND, Lie.STALE_EPOCH], ids=lambda lie: lie.name.lower())
async def test_an_update_that_answers_no_open_task_is_refused_and_changes_nothing(tmp_path, lie):
    built = stage(tmp_path, "a", rounds=1)
    async with built.aggregator() as running, built.site("site-a", running.address, LyingSite, lie=lie) as site:
        await site.connect()
        await site.ready()
        task = await site.next_task()
        await site.answer(task)
        assert [error.refusal.value for error in site.refusals] == [lie.value]
        await HonestSite.send(site, task, site.header(task, p := site.train(task, {"weight": np.zeros(10)}), {}), p)
        await site.answer(await site.next_task())
        assert (await running.ended()).outcome == "completed"


class SessionSite(HonestSite):
    """Sends its updates through its session."""

    async def send(self, task, header, payloads):
        await self.push_whole(header, payloads)


async def test_small_updates_may_go_through_the_session_and_count_as_others_do(tmp_path):
    built = stage(tmp_path)
    async with built.aggregator() as running:
        a = built.site("site-a", running.address, SessionSite, target=1.0, train_examples=300)
        b = built.site("site-b", running.address, target=5.0, train_examples=100)
        assert await run_all(a, b) == ["completed", "completed"]
        await running.ended()
        calls = running.aggregator.metrics.rpc_total.collect()[0].samples
        pushes = [
            line.value for line in calls if line.name.endswith("_total") and line.labels["method"] == "PushUpdate"
        ]
        assert sum(pushes) == 3  # of site-b
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    np.testing.assert_allclose(arrays["weight"], 2 * (1 - 0.5**3), rtol=1e-6)
    assert [verdict.counted for verdict in a.verdicts] == [True] * 3


async def test_an_update_refused_in_the_session_is_answered_there_and_the_session_goes_on(tmp_path):
    built = stage(tmp_path, quorum=1, rounds=1)
    async with built.aggregator() as running, built.site("site-a", running.address, SessionSite) as liar:
        honest = asyncio.create_task(built.site("site-b", running.address).run())
        await liar.connect()
        await liar.ready()
        task = await liar.next_task()
        payloads = liar.train(task, {"weight": np.zeros(10)})
        early, late = liar.header(task, payloads, {}), liar.header(task, payloads, {})
        early.round += 1
        await liar.push_whole(early, payloads)
        assert (await liar.hear()).refused.reason == "closed_round"
        await liar.push_whole(late, payloads, digests=[bytes(32)])
        refused = (await liar.hear()).refused
        assert (refused.reason, refused.update_id) == ("corrupt", late.update_id)
        await liar.answer(await liar.next_task())
        assert (await running.ended()).outcome == "completed"
        await honest
    assert [site["outcome"] for site in history(built)["rounds"][0]["sites"]] == ["refused", "counted"]


MALFORMED = {
    "payload missing": lambda update: update.ClearField("payloads"),
    "payload cut": lambda update: update.payloads.__setitem__(0, bytes(39)),
    "too large for a session": lambda update: update.payloads.append(bytes(1 << 20)),
    "short id": lambda update: setattr(update.header, "update_id", b"short"),
    "more steps than there can be": lambda update: setattr(update.header, "steps", 1 << 60),
    "no digest": lambda update: update.commit.ClearField("digests"),
}


@pytest.mark.parametrize("spoil", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_update_in_a_session_ends_it_and_the_round_does_not_wait_for_its_site(tmp_path, spoil):
    built = stage(tmp_path, "ab", quorum=1, rounds=1, evaluate_every=0)
    async with (
        built.aggregator(site_grace_s=600) as running,
        built.site("site-a", running.address) as site,
        built.site("site-b", running.address) as honest,
    ):
        for each in (site, honest):
            await each.connect()
            await each.ready()
        task = await site.next_task()
        update = pb.WholeUpdate(
            header=site.header(task, {"delta": bytes(40)}, {}),
            payloads=[bytes(40)],
            commit=pb.UpdateCommit(digests=[payload_digest(bytes(40))]),
        )
        spoil(update)
        await site.say(pb.ParticipateRequest(update=update))
        with pytest.raises(MalformedMessageError):
            await site.hear()
        await honest.answer(await honest.next_task())
        assert (await running.ended()).outcome == "completed"
    first = history(built)["rounds"][0]["sites"][0]
    assert first["outcome"] == "refused" and first["reason"].startswith("malformed: ")


async def test_a_malformed_header_of_an_upload_costs_its_site_the_round_and_nobody_else(tmp_path):
    built = stage(tmp_path, "ab", quorum=1, rounds=1, evaluate_every=0)
    async with (
        built.aggregator(site_grace_s=600) as running,
        built.site("site-a", running.address) as site,
        built.site("site-b", running.address) as honest,
    ):
        for each in (site, honest):
            await each.connect()
            await each.ready()
        header = site.header(await site.next_task(), {"delta": bytes(40)}, {})
        header.update_id = b"short"
        with pytest.raises(MalformedMessageError):
            await site.push(header, {"delta": bytes(40)})
        await honest.answer(await honest.next_task())
        assert (await running.ended()).outcome == "completed"
    first = history(built)["rounds"][0]["sites"][0]
    assert first["outcome"] == "refused" and first["reason"].startswith("malformed: update id has 5 bytes")


async def test_an_update_in_a_session_that_is_cut_is_asked_for_again_unless_it_had_arrived(tmp_path):
    built = stage(tmp_path, "a", rounds=4)
    async with built.aggregator() as running, built.site("site-a", running.address, SessionSite) as site:
        await site.connect()
        await site.ready()
        with contextlib.suppress(Finished):
            while True:
                task = await site.next_task()
                await site.answer(task)
                if task.kind == pb.TASK_KIND_TRAIN:
                    await site.cut()
                    await site.connect()
                    await site.ready()
        assert (await running.ended()).outcome == "completed"
    assert [row["round"] for row in history(built)["rounds"]] == [1, 2, 3, 4]


class CuttingSite(SessionSite):
    """Loses its session after each update, each time a moment later, and has forgotten what it sent."""

    async def send(self, task, header, payloads):
        await self.push_whole(header, payloads)
        if len(set(self.trained)) == len(self.trained):
            for _ in range(task.round):
                await asyncio.sleep(0)
            await self.cut()
            await self.connect()
            await self.ready()


async def test_whenever_the_session_of_an_update_is_cut_it_counts_once(tmp_path):
    built = stage(tmp_path, "a", rounds=10)
    async with built.aggregator() as running:
        assert await run_all(built.site("site-a", running.address, CuttingSite)) == ["completed"]
        await running.ended()
        admitted = running.aggregator.metrics.registry.get_sample_value("federation_updates_admitted_total")
    assert [[site["outcome"] for site in row["sites"]] for row in history(built)["rounds"]] == [["counted"]] * 10
    assert admitted == 10


async def test_a_norm_beyond_the_plans_is_refused(tmp_path):
    built = stage(tmp_path, "ab", quorum=1, rounds=1, max_norm=2.0)
    async with built.aggregator() as running:
        a = built.site("site-a", running.address, LyingSite, lie=Lie.STALE_EPOCH, target=10.0)
        a._spoil = lambda header: None
        assert await run_all(a, built.site("site-b", running.address)) == ["completed", "completed"]
    assert a.refusals[0].refusal is Refusal.NORM


async def test_a_late_update_is_refused_and_its_site_told(tmp_path):
    built = stage(tmp_path, quorum=1, rounds=1, deadline_s=60)
    clock = FakeClock(now=time.time())
    async with built.aggregator(clock=clock) as running, built.site("site-b", running.address) as punctual:
        late = built.site("site-a", running.address, LateSite)
        task = asyncio.create_task(late.run())
        await punctual.connect()
        await punctual.ready()
        await punctual.answer(await punctual.next_task())
        await late.asked.wait()
        clock.advance(60)
        late.may_send.set()
        await punctual.answer(await punctual.next_task())
        assert await task == "completed"
        await late.vanish()
        assert (await running.ended()).outcome == "completed"
    assert late.refusals[0].refusal is Refusal.CLOSED_ROUND
    assert history(built)["rounds"][0]["sites"][0]["outcome"] == "late"


async def test_an_upload_in_progress_ends_when_its_round_closes(tmp_path):
    built = stage(tmp_path, quorum=1, rounds=1, deadline_s=60, schema=flat_schema(600_000))
    clock = FakeClock(now=time.time())
    async with built.aggregator(clock=clock) as running:
        async with built.site("site-a", running.address) as slow, built.site("site-b", running.address) as punctual:
            for site in (slow, punctual):
                await site.connect()
                await site.ready()
            await punctual.answer(await punctual.next_task())
            task = await slow.next_task()
            payloads = {"delta": bytes(2_400_000)}
            call = slow.stub.bidi("PushUpdate")
            await call.write(pb.PushUpdateRequest(header=slow.header(task, payloads, {})))
            assert (await call.read()).HasField("holding")
            clock.advance(60)
            with pytest.raises(UpdateRejectedError) as caught:
                await call.read()
    assert caught.value.refusal is Refusal.CLOSED_ROUND


async def test_a_site_that_vanishes_in_its_upload_costs_the_round_nothing_with_a_quorum(tmp_path):
    built = stage(tmp_path, "abc", quorum=2, rounds=2, schema=flat_schema(600_000))
    async with built.aggregator() as running:
        gone = built.site("site-c", running.address, VanishingSite, sent_bytes=1 << 20)
        results = await run_all(*(built.site(f"site-{x}", running.address) for x in "ab"), gone)
        await running.ended()
    assert results == ["completed", "completed", "vanished"]
    assert [site["outcome"] for site in history(built)["rounds"][0]["sites"]] == ["counted", "counted", "lost"]


async def test_a_cut_upload_goes_on_where_it_stopped(tmp_path):
    built = stage(tmp_path, "a", rounds=1, schema=flat_schema(1_000_000), evaluate_every=0)
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        await site.connect()
        await site.ready()
        task = await site.next_task()
        payloads = {"delta": np.ones(1_000_000, dtype=np.float32).tobytes()}
        header = site.header(task, payloads, {"loss": 1.0})
        await site.push(header, payloads, most_bytes=2 << 20, commit=False)
        again = await site.push(header, payloads, most_bytes=0, commit=False)
        assert 0 < again.bytes[0] <= 2 << 20 and again.bytes[0] % (1 << 20) == 0
        assert (await site.push(header, payloads)).admitted
        assert (await running.ended()).outcome == "completed"
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    assert (arrays["weight"] == 1.0).all()


async def test_where_many_upload_smaller_pieces_are_asked_for(tmp_path):
    crowd = string.ascii_lowercase[: turns_here() + 1]
    built = stage(tmp_path, crowd, rounds=2, schema=flat_schema(100_000), evaluate_every=0)
    wanted = []
    async with built.aggregator() as running, contextlib.AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(built.site(f"site-{each}", running.address)) for each in crowd]
        for site in sites:
            await site.connect()
            await site.ready()
        payloads = {"delta": np.ones(100_000, dtype=np.float32).tobytes()}
        for _ in range(2):
            headers = [site.header(await site.next_task(), payloads, {"loss": 1.0}) for site in sites]
            holding = await sites[0].push(headers[0], payloads, most_bytes=0, commit=False)
            wanted.append(holding.piece_bytes)
            for site, header in zip(sites, headers, strict=True):
                await site.push(header, payloads)
    assert wanted == [CHUNK_BYTES, CROWD_PIECE_BYTES]


async def test_an_upload_in_crumbs_is_refused_and_only_the_last_piece_may_be_short(tmp_path):
    built = stage(tmp_path, "ab", rounds=1, schema=flat_schema(100_000), quorum=1)
    payloads = {"delta": bytes(400_000)}
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        async with built.site("site-b", running.address) as other:
            for each in (site, other):
                await each.connect()
                await each.ready()
            task = await site.next_task()
            with pytest.raises(MalformedMessageError, match=r"65535 bytes .* expected at least 65536"):
                await site.push(site.header(task, payloads, {}), payloads, chunk_bytes=(64 << 10) - 1)
            task = await other.next_task()
            assert (await other.push(other.header(task, payloads, {}), payloads, chunk_bytes=64 << 10)).admitted


async def test_another_update_id_begins_anew_and_an_admitted_one_is_only_acknowledged(tmp_path):
    built = stage(tmp_path, "ab", rounds=1, schema=flat_schema(600_000))
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        async with built.site("site-b", running.address) as other:
            for each in (site, other):
                await each.connect()
                await each.ready()
            task = await site.next_task()
            payloads = {"delta": bytes(2_400_000)}
            first, second = (site.header(task, payloads, {}) for _ in range(2))
            await site.push(first, payloads, most_bytes=1 << 20, commit=False)
            assert list((await site.push(second, payloads, most_bytes=0, commit=False)).bytes) == [0]
            assert (await site.push(second, payloads)).admitted
            holding = await site.push(first, payloads)
            assert holding.admitted and holding.admitted_update_id == second.update_id


async def test_a_full_disk_under_the_spool_costs_the_update_and_is_named(tmp_path, files_of_at_most):
    built = stage(tmp_path, "a", rounds=1, max_failures=1, schema=flat_schema(600_000))
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        await site.connect()
        await site.ready()
        with files_of_at_most(1 << 20):  # the spool needs 2.4 MB
            for _ in range(2):
                with pytest.raises(StorageError):
                    await site.answer(await site.next_task())
        record = await running.ended()
    assert record.outcome == "failed" and "DiskFullError" in record.reason
