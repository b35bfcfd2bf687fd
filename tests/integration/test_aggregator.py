"""A real aggregator and scripted sites over real mutual TLS, in one process; no director, no trainer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import string
import time

import numpy as np
import pytest

from federation.aggregator.turns import CROWD_PIECE_BYTES, turns_here
from federation.errors import (
    ConflictError,
    IdentityError,
    MalformedMessageError,
    NotFoundError,
    PeerError,
    Refusal,
    StorageError,
    TransportError,
    UpdateRejectedError,
)
from federation.names import Role, SiteName
from federation.plan import EarlyStopping, Plan
from federation.storage.checkpoints import read_model
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec
from federation.tensors.digest import payload_digest
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.clock import FakeClock
from federation.testing.honest_sites import HonestSite
from federation.testing.misbehaving_sites import LateSite, Lie, LyingSite, VanishingSite
from federation.testing.scripted_sites import Finished, ScriptedSite
from federation.v1 import aggregator_pb2 as pb
from federation.wire.chunks import CHUNK_BYTES


def stage(tmp_path, sites="ab", schema=None, optimizer=None, value=0.0, **plan):
    plan = {"sites": len(sites), "rounds": 3, **plan}
    names = [f"site-{letter}" for letter in sites]
    return Stage(tmp_path, Plan(**plan), names, schema=schema, optimizer=optimizer, value=value)


def history(built):
    return json.loads((built.work / "artifacts" / "history.json").read_text())


async def run_all(*sites):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(site.run()) for site in sites]
    for site in sites:
        await site.vanish()
    return [task.result() for task in tasks]


async def test_three_rounds_arrive_at_the_weighted_mean(tmp_path):
    built = stage(tmp_path)
    async with built.aggregator() as running:
        a = built.site("site-a", running.address, target=1.0, train_examples=300)
        b = built.site("site-b", running.address, target=5.0, train_examples=100)
        assert await run_all(a, b) == ["completed", "completed"]
        record = await running.ended()
    assert record.outcome == "completed"
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    # Halfway to the mean target of 2, three times over.
    np.testing.assert_allclose(arrays["weight"], 2 * (1 - 0.5**3), rtol=1e-6)
    rounds = history(built)["rounds"]
    assert [row["round"] for row in rounds] == [1, 2, 3]
    assert [site["weight"] for site in rounds[0]["sites"]] == [0.75, 0.25]
    assert rounds[0]["metrics"]["loss"] == pytest.approx((0 + 16) / 2)  # weighted by validation examples
    assert rounds[2]["is_best"] and [verdict.counted for verdict in a.verdicts] == [True] * 3
    assert a.trained == [1, 2, 3]


async def test_what_a_site_was_sent_to_evaluate_is_not_sent_again_to_train_from_unless_its_session_is_new(tmp_path):
    built = stage(tmp_path, sites="a", rounds=2)
    async with built.aggregator() as running:
        site = built.site("site-a", running.address)
        await site.connect()
        await site.ready()
        first = await site.next_task()
        await site.answer(first)
        evaluation = await site.next_task()
        await site.answer(evaluation)
        second = await site.next_task()
        assert [len(task.inline) for task in (first, evaluation, second)] == [1, 1, 0]
        assert second.payloads[0].digest == evaluation.payloads[0].digest
        assert second.verdict.counted and second.verdict.round == 1
        await site.vanish()
        site = built.site("site-a", running.address)
        await site.connect()
        await site.ready()
        again = await site.next_task()
        assert (again.round, len(again.inline)) == (2, 1)
        await site.vanish()


async def test_the_best_model_is_kept_though_later_ones_are_worse(tmp_path):
    class Drifting(HonestSite):
        def loss(self, model):
            return 1.0 if self.trained[-1] == 2 else 2.0

    built = stage(tmp_path, "a", rounds=3)
    async with built.aggregator() as running:
        await run_all(built.site("site-a", running.address, Drifting))
        await running.ended()
    _, best = read_model(built.work / "artifacts" / "best.safetensors")
    _, last = read_model(built.work / "artifacts" / "last.safetensors")
    np.testing.assert_allclose(best["weight"], 1 - 0.5**2)
    np.testing.assert_allclose(last["weight"], 1 - 0.5**3)
    assert [row["is_best"] for row in history(built)["rounds"]] == [True, True, False]


async def test_a_large_model_is_pulled_once_and_evaluated_models_are_not_fetched_again(tmp_path):
    built = stage(tmp_path, schema=flat_schema(1_000_003), rounds=2)
    async with built.aggregator() as running:
        a, b = built.site("site-a", running.address), built.site("site-b", running.address)
        assert await run_all(a, b) == ["completed", "completed"]
        await running.ended()
    assert a.pulled_bytes == 3 * 4 * 1_000_003, "the initial model and two candidates"
    assert history(built)["rounds"][1]["bytes_up"] == 2 * 4 * 1_000_003
    assert not list((built.work / "spool").glob("admitted-*"))


async def test_every_role_and_dtype_is_combined_as_it_should_be(tmp_path):
    schema = TensorSchema.of(
        [
            TensorSpec(name="half", dtype=DType.FLOAT16, shape=(5,)),
            TensorSpec(name="brain", dtype=DType.BFLOAT16, shape=(5,)),
            TensorSpec(name="wide", dtype=DType.FLOAT64, shape=(3, 2)),
            TensorSpec(name="mean", dtype=DType.FLOAT32, shape=(4,), role=TensorRole.BUFFER),
            TensorSpec(name="count", dtype=DType.INT64, shape=(), role=TensorRole.BUFFER),
            TensorSpec(name="head", dtype=DType.FLOAT32, shape=(7,), role=TensorRole.LOCAL),
        ]
    )
    built = stage(tmp_path, schema=schema, optimizer=flat_schema(6), value=0.25, optimizer_state="aggregate")
    async with built.aggregator() as running:
        a = built.site("site-a", running.address, target=1.0)
        b = built.site("site-b", running.address, target=2.0)
        assert await run_all(a, b) == ["completed", "completed"]
        await running.ended()
        assert a.welcome.base.encoded_bytes == 28
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    expected = 1.5 - 1.25 * 0.5**3
    np.testing.assert_allclose(arrays["wide"], expected)
    np.testing.assert_allclose(arrays["half"].astype(float), expected, rtol=1e-3)
    np.testing.assert_allclose(arrays["brain"].astype(float), expected, rtol=1e-2)
    np.testing.assert_allclose(arrays["mean"], 3.25)
    assert arrays["count"] == 3 and (arrays["head"] == 0.25).all()
    _, state = read_model(built.work / "checkpoints" / "optimizer.odd.safetensors")
    np.testing.assert_allclose(state["weight"], 1.5)


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


async def test_a_session_cut_for_a_moment_is_asked_again_and_loses_no_round(tmp_path):
    built = stage(tmp_path, rounds=1)
    async with built.aggregator(site_grace_s=60) as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            await a.answer(await a.next_task())
            await b.next_task()
            await b.cut()
            await b.connect()
            await b.ready()
            await b.answer(await b.next_task())
            for site in (a, b):
                await site.answer(await site.next_task())
            assert (await running.ended()).outcome == "completed"
    assert b.trained == [1, 1]
    assert not history(built)["degraded"]


async def test_a_site_that_missed_its_verdict_hears_it_when_it_is_back(tmp_path):
    built = stage(tmp_path, rounds=2, evaluate_every=0)
    async with built.aggregator(site_grace_s=60) as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            await a.answer(await a.next_task())
            await a.cut()
            await b.answer(await b.next_task())
            assert (await b.next_task()).round == 2, "round 1 is committed"
            missed = a.pending
            welcome = await a.connect()
            assert welcome.round == 2
            verdict = (await a.hear()).verdict
            assert verdict.counted and verdict.update_id == missed.update_id


async def test_a_newer_session_supersedes_the_older_and_says_so(tmp_path):
    built = stage(tmp_path, "ab")
    async with built.aggregator() as running:
        async with built.site("site-a", running.address) as older, built.site("site-a", running.address) as newer:
            await older.connect()
            await older.ready()
            await newer.connect()
            with pytest.raises(ConflictError, match="superseded"):
                await older.hear()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(lambda hello: setattr(hello, "experiment", "other-00000001"), NotFoundError, id="experiment"),
        pytest.param(lambda hello: setattr(hello, "plan_digest", bytes(32)), PeerError, id="plan"),
        pytest.param(lambda hello: setattr(hello.protocol, "lowest", 99), MalformedMessageError, id="empty range"),
        pytest.param(lambda hello: hello.protocol.MergeFrom(type(hello.protocol)(lowest=98, highest=99)), PeerError,
                     id="protocol"),
    ],
)  # fmt: skip
async def test_a_session_for_something_else_is_refused(tmp_path, change, error):
    built = stage(tmp_path)
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        with pytest.raises(error):
            await site.connect(change)


async def test_a_site_that_the_roster_lacks_is_refused(tmp_path):
    built = stage(tmp_path)
    async with built.aggregator() as running, built.site("stranger", running.address) as site:
        with pytest.raises(IdentityError, match="stranger"):
            await site.connect()


async def test_a_user_is_no_site(tmp_path):
    built = stage(tmp_path)
    tls = built.tls_of(Role.USER, "site-a")
    async with built.aggregator() as running:
        async with ScriptedSite(SiteName("site-a"), built.meeting(running.address), tls) as user:
            with pytest.raises(IdentityError, match="role user"):
                await user.connect()


async def test_a_plaintext_client_is_refused(tmp_path):
    built = stage(tmp_path)
    async with built.aggregator() as running:
        async with ScriptedSite(SiteName("site-a"), built.meeting(running.address), None) as site:
            with pytest.raises(TransportError):
                await site.connect()


async def test_a_failing_site_says_why_and_the_experiment_fails_with_that_reason(tmp_path):
    built = stage(tmp_path, "a", max_failures=1)
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        await site.connect()
        await site.ready()
        for attempt in (1, 2):
            task = await site.next_task()
            assert task.attempt == attempt
            await site.fail(task, "ZeroDivisionError")
        record = await running.ended()
    assert record.outcome == "failed" and "ZeroDivisionError" in record.reason


async def test_a_miss_drops_the_attempts_updates_and_says_so(tmp_path):
    built = stage(tmp_path, "ab")
    async with built.aggregator() as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            await a.answer(await a.next_task())
            await b.fail(await b.next_task())
            assert (await a.next_task()).attempt == 2
            assert [(v.counted, v.reason, v.attempt) for v in a.verdicts] == [(False, "quorum lost", 1)]


async def test_metrics_outside_the_plan_cost_a_site_its_say(tmp_path):
    built = stage(tmp_path, "ab", rounds=1)
    async with built.aggregator() as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            for site in (a, b):
                await site.answer(await site.next_task())
            await a.report(await a.next_task(), {"loss": float("nan")})
            await b.report(await b.next_task(), {"loss": 3.0})
            await running.ended()
    assert history(built)["rounds"][0]["metrics"] == {"loss": 3.0}


async def test_sealed_messages_are_passed_on_with_the_senders_name(tmp_path):
    built = stage(tmp_path, "abc", minimum_sites=3)
    async with built.aggregator() as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            await a.connect()
            await a.ready()
            await b.connect()  # not ready yet: its session is enough
            await a.say(pb.ParticipateRequest(sealed=pb.SealedMessage(peer="site-b", purpose="test", body=b"x")))
            sealed = (await b.hear()).sealed
            assert (sealed.peer, sealed.body) == ("site-a", b"x")
            await a.say(pb.ParticipateRequest(sealed=pb.SealedMessage(peer="../b", purpose="test")))
            with pytest.raises(MalformedMessageError):
                await a.hear()


async def test_early_stopping_ends_the_experiment_well(tmp_path):
    built = stage(tmp_path, "a", rounds=50, early_stopping=EarlyStopping(patience=2, min_delta=0.2))
    async with built.aggregator() as running:
        await run_all(built.site("site-a", running.address))
        record = await running.ended()
    assert record.outcome == "completed" and "stopped early" in record.reason


async def test_a_diverged_model_fails_the_experiment_with_a_reason(tmp_path):
    built = stage(tmp_path, "a", schema=flat_schema(4, DType.FLOAT16), value=60000.0)
    async with built.aggregator() as running:
        site = built.site("site-a", running.address, target=180000.0)
        assert await run_all(site) == ["failed"]
        assert "diverged" in (await running.ended()).reason


async def test_a_full_disk_under_the_spool_costs_the_update_and_is_named(tmp_path):
    built = stage(tmp_path, "a", rounds=1, max_failures=1, schema=flat_schema(600_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        await site.connect()
        await site.ready()
        try:
            # No file may grow beyond 1 MB: to the spool that is a disk without room for 2.4 MB.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
            for _ in range(2):
                with pytest.raises(StorageError):
                    await site.answer(await site.next_task())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        record = await running.ended()
    assert record.outcome == "failed" and "DiskFullError" in record.reason


async def test_what_the_process_shows_prometheus_is_what_happened(tmp_path):
    built = stage(tmp_path, rounds=2)
    async with built.aggregator() as running:
        await run_all(*(built.site(name, running.address) for name in ("site-a", "site-b")))
        sample = running.aggregator.metrics.registry.get_sample_value
        assert sample("federation_updates_admitted_total") == 4
        assert sample("federation_rounds_committed_total") == 2
        assert sample("federation_round_phase_seconds_count", {"phase": "collect"}) == 2
        assert sample("federation_payload_bytes_total", {"direction": "in", "payload": "delta"}) == 4 * 40
        assert sample("federation_payload_bytes_total", {"direction": "out", "payload": "model"}) == 6 * 40
        assert sample("federation_evaluation_metric", {"metric": "loss", "site": ""}) == pytest.approx(0.0625)
        await running.ended()
