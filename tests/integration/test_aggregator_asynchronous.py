"""Asynchronous methods over real TLS: sites train whenever they are free, and nobody waits for the slow ones.

A slow site is one that is told nothing to do: it holds its task, and answers when the test says so.
"""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pytest

from federation.errors import FederationError, Refusal, UpdateRejectedError
from federation.plan import Plan
from federation.storage.safetensors_files import read_model
from federation.tensors.digest import payload_digest
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.clock import FakeClock
from federation.testing.honest_sites import HonestSite
from federation.testing.scripted_sites import Finished
from federation.v1 import aggregator_pb2 as pb
from federation.v1 import tensors_pb2


def stage(tmp_path, sites="ab", elements=10, **plan):
    plan = {"sites": len(sites), "rounds": 2, "evaluate_every": 0, **plan}
    return Stage(tmp_path, Plan(**plan), [f"site-{letter}" for letter in sites], schema=flat_schema(elements))


def history(built):
    return json.loads((built.work / "artifacts" / "history.json").read_text())["rounds"]


def weight(built):
    return read_model(built.work / "artifacts" / "last.safetensors")[1]["weight"]


def rows(record):
    return {row["site"]: (row["outcome"], row["staleness"]) for row in record["sites"]}


async def join(built, running, *letters, kind=HonestSite):
    """Sites that are ready, in order; site a's target is 1, b's 2 and so on."""
    sites = [
        built.site(f"site-{letter}", running.address, kind, target=1.0 + "abcd".index(letter)) for letter in letters
    ]
    for site in sites:
        await site.connect()
        await site.ready()
    return sites


async def leave(running, *sites):
    """All hear of the end, whatever else they were asked before it."""
    for site in sites:
        with pytest.raises(Finished):
            while True:
                await site.next_task()
        await site.vanish()
    assert (await running.ended()).outcome == "completed"


FEDASYNC = {"algorithm": "fedasync", "options": {"alpha": 0.5, "strategy": "polynomial", "a": 1.0}}


@pytest.mark.parametrize("elements", [10, 100_000], ids=["inline", "pulled"])
async def test_fedasync_takes_in_each_model_as_it_comes_and_rebases_the_late_one(tmp_path, elements):
    built = stage(tmp_path, "ab", elements, rounds=3, **FEDASYNC)
    async with built.aggregator() as running:
        a, b = await join(built, running, "a", "b")
        old = await b.next_task()
        for number in (1, 2):
            task = await a.next_task()
            assert (task.kind, task.round, task.deadline_s) == (pb.TASK_KIND_TRAIN, number, 3600)
            await a.answer(task)
        third = await a.next_task()
        assert (third.round, old.round) == (3, 1)
        await b.answer(old)  # the version it was asked with is offered still
        await leave(running, a, b)
    # x: 0, then halfway to the model of a (halfway to 1), twice; b's model of version 1 is 1, its share 0.5 / 3.
    x1 = 0.25
    x2 = x1 + 0.5 * (1 - x1) / 2
    np.testing.assert_allclose(weight(built), x2 + (1 - x2) / 6, rtol=1e-6)
    assert [rows(record) for record in history(built)] == [
        {"site-a": ("counted", 0)}, {"site-a": ("counted", 0)}, {"site-b": ("counted", 2)},
    ]  # fmt: skip
    assert [(verdict.round, verdict.counted) for verdict in b.verdicts] == [(1, True)]
    assert list((built.work / "checkpoints" / "versions").iterdir()) == [
        built.work / "checkpoints" / "versions" / "00000003-model.safetensors"
    ], "of the versions only the one that a still trains from is left"


async def test_fedbuff_steps_when_enough_are_in_and_weighs_them_by_their_age(tmp_path):
    built = stage(tmp_path, "abc", rounds=2, algorithm="fedbuff", options={"k": 2})
    async with built.aggregator() as running:
        a, b, c = await join(built, running, "a", "b", "c")
        tasks = [await site.next_task() for site in (a, b, c)]
        await a.answer(tasks[0])
        await b.answer(tasks[1])
        second = await a.next_task()
        assert second.round == 2 and (await b.next_task()).round == 2
        await c.answer(tasks[2])
        await a.answer(second)
        await leave(running, a, b, c)
    x1 = (0.5 + 1.0) / 2
    np.testing.assert_allclose(weight(built), x1 + ((1 - x1) / 2 + 1.5 * 2**-0.5) / 2, rtol=1e-6)
    first, last = history(built)
    assert rows(first) == {"site-a": ("counted", 0), "site-b": ("counted", 0)}
    assert rows(last) == {"site-a": ("counted", 0), "site-c": ("counted", 1)}
    assert {row["site"]: row["weight"] for row in last["sites"]} == pytest.approx(
        {"site-a": 1 / (1 + 2**-0.5), "site-c": 2**-0.5 / (1 + 2**-0.5)}
    )


async def test_an_update_of_another_task_than_the_sites_own_is_refused(tmp_path):
    built = stage(tmp_path, "ab", rounds=2, **FEDASYNC)
    async with built.aggregator() as running:
        a, b = await join(built, running, "a", "b")
        first, old = await a.next_task(), await b.next_task()
        await a.answer(first)
        second = await a.next_task()
        payloads = {"delta": bytes(40)}
        for task, refusal in ((second, Refusal.CLOSED_ROUND), (first, Refusal.WRONG_MODEL)):
            header = b.header(task, payloads, {})
            if refusal is Refusal.WRONG_MODEL:
                header.model_digest = second.payloads[0].digest
            with pytest.raises(UpdateRejectedError) as caught:
                await b.push(header, payloads)
            assert caught.value.refusal is refusal
            assert old.round == 1
        await a.answer(second)
        await leave(running, a, b)
    assert rows(history(built)[1]) == {"site-a": ("counted", 0), "site-b": ("refused", 0)}


async def test_a_round_ends_at_its_deadline_with_what_is_in_and_who_is_late_counts_less(tmp_path):
    built = stage(tmp_path, "abc", 600_000, rounds=2, algorithm="stale", options={"k": 3}, deadline_s=60)
    clock = FakeClock(now=time.time())
    async with built.aggregator(clock=clock) as running:
        a, b, c = await join(built, running, "a", "b", "c")
        tasks = [await site.next_task() for site in (a, b, c)]
        await a.answer(tasks[0])
        await b.answer(tasks[1])
        payloads = c.train(tasks[2], {"weight": np.zeros(600_000, np.float32)})
        header = c.header(tasks[2], payloads, {})
        await c.push(header, payloads, most_bytes=1 << 20, commit=False)
        clock.advance(60)
        again = [await a.next_task(), await b.next_task()]
        assert [task.round for task in again] == [2, 2]
        held = await c.push(header, payloads, most_bytes=0, commit=False)
        assert held.bytes == [1 << 20], "what was under way when the round closed goes on where it was"
        await c.push(header, payloads)
        await a.answer(again[0])
        await b.answer(again[1])
        await leave(running, a, b, c)
    x1 = 0.75
    steps = np.array([(1 - x1) / 2, (2 - x1) / 2, 1.5])
    np.testing.assert_allclose(weight(built), x1 + steps @ [1, 1, 0.5] / 2.5, rtol=1e-6)
    assert [rows(record) for record in history(built)] == [
        {"site-a": ("counted", 0), "site-b": ("counted", 0)},
        {"site-a": ("counted", 0), "site-b": ("counted", 0), "site-c": ("counted", 1)},
    ]


async def test_a_silent_site_loses_its_place_a_deadline_after_it_was_told_though_rounds_go_on_closing(tmp_path):
    built = stage(tmp_path, "abc", rounds=3, sample=2, deadline_s=60, **FEDASYNC)
    clock = FakeClock(now=time.time())

    async def next_told():
        done, _ = await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED)
        site = next(site for site, task in waiting.items() if task in done)
        return site, waiting.pop(site).result()

    async with built.aggregator(clock=clock) as running:
        sites = await join(built, running, "a", "b", "c")
        waiting = {site: asyncio.create_task(site.next_task()) for site in sites}
        await next_told()  # and it is not heard any more
        for number in (1, 2):
            site, task = await next_told()
            assert task.round == number
            clock.advance(25)
            await site.answer(task)
            waiting[site] = asyncio.create_task(site.next_task())
        site, task = await next_told()
        clock.advance(25)
        _, another = await next_told()
        assert (task.round, another.round) == (3, 3), "both of the others train now"
        await site.answer(task)
        await leave(running, *sites)
    lines = [json.loads(line.partition(" ")[2]) for line in (built.work / "journal").read_text().splitlines()]
    asked = [line["body"] for line in lines if line["kind"] == "asked"]
    assert [(body["round"], body.get("draws", 0)) for body in asked] == [(1, 1), (2, 1), (3, 1), (3, 0)]


@pytest.mark.parametrize("whole", [True, False], ids=["before the header", "under way"])
async def test_an_update_beyond_max_staleness_is_refused_and_its_site_asked_anew(tmp_path, whole):
    options = {**FEDASYNC["options"], "max_staleness": 1}
    built = stage(tmp_path, "ab", 600_000, rounds=4, algorithm="fedasync", options=options)
    async with built.aggregator() as running:
        a, b = await join(built, running, "a", "b")
        old = await b.next_task()
        payloads = {"delta": bytes(2_400_000)}
        header = b.header(old, payloads, {})
        for number in (1, 2):
            await a.answer(await a.next_task())
            if not whole and number == 1:
                call = b.stub.bidi("PushUpdate")
                await call.write(pb.PushUpdateRequest(header=header))
                assert (await call.read()).HasField("holding")
        third = await a.next_task()
        with pytest.raises(UpdateRejectedError, match="2 steps old, at most 1 are taken") as caught:
            if whole:
                await b.push(header, payloads)
            else:
                await b._send_chunks(call, [payloads["delta"]], [0], None, 1 << 20)
                digest = payload_digest(payloads["delta"])
                await call.try_write(pb.PushUpdateRequest(commit=pb.UpdateCommit(digests=[digest])))
                await call.read()
        assert caught.value.refusal is Refusal.TOO_STALE
        await a.answer(third)
        fresh = await b.next_task()
        assert fresh.round == 4, "it goes on with the version there is"
        await b.answer(fresh)
        await leave(running, a, b)
    assert "too_stale" in b.verdicts[0].reason and (b.verdicts[0].round, b.verdicts[0].counted) == (1, False)
    assert [rows(record) for record in history(built)[2:]] == [
        {"site-a": ("counted", 0), "site-b": ("refused", 0)}, {"site-b": ("counted", 0)},
    ]  # fmt: skip
    assert {path.read_bytes()[:1] for path in (built.work / "spool").glob("admitted-*")} == {b"-"}, "no record is left"


async def test_a_site_that_comes_back_in_time_is_told_its_task_again_on_the_version_it_has(tmp_path):
    built = stage(tmp_path, "ab", 100_000, rounds=3, **FEDASYNC)
    async with built.aggregator(site_grace_s=60) as running:
        a, b = await join(built, running, "a", "b")
        first = await b.next_task()
        await b.cut()
        for _ in range(2):
            await a.answer(await a.next_task())
        assert (await a.next_task()).round == 3
        await b.connect()
        await b.ready()
        again = await b.next_task()
        assert (again.round, again.attempt) == (1, 1)
        assert again.payloads[0].digest == first.payloads[0].digest
        assert not b.pulled_bytes
        await b.answer(again)
        assert b.pulled_bytes == 400_000, "the version of round 1 is fetched in round 3"
        await leave(running, a, b)
    assert rows(history(built)[2]) == {"site-b": ("counted", 2)}


async def test_a_site_that_vanishes_costs_nothing_and_starts_anew_when_it_is_back(tmp_path):
    built = stage(tmp_path, "ab", rounds=3, algorithm="fedbuff", options={"k": 2})
    async with built.aggregator() as running:
        a, b = await join(built, running, "a", "b")
        old = await b.next_task()
        await b.cut()
        for _ in range(2):
            await a.answer(await a.next_task())  # the round closes once the other is lost: nobody trains any more
        third = await a.next_task()
        assert third.round == 3
        payloads = {"delta": bytes(40)}
        with pytest.raises(UpdateRejectedError) as caught:
            await b.push(b.header(old, payloads, {}), payloads)
        assert caught.value.refusal is Refusal.CLOSED_ROUND
        await b.connect()
        await b.ready()
        task = await b.next_task()
        assert [(verdict.round, verdict.reason) for verdict in b.verdicts] == [(1, "late")]
        assert task.round == 3
        await b.answer(task)
        await a.answer(third)
        await leave(running, a, b)
    assert [rows(record) for record in history(built)] == [
        {"site-a": ("counted", 0), "site-b": ("lost", 0)},
        {"site-a": ("counted", 0)},
        {"site-a": ("counted", 0), "site-b": ("counted", 0)},
    ]


async def test_only_contributors_evaluate_and_then_they_train_on(tmp_path):
    built = stage(tmp_path, "abc", rounds=2, algorithm="fedbuff", options={"k": 2}, evaluate_every=1)
    async with built.aggregator() as running:
        a, b, c = await join(built, running, "a", "b", "c")
        held = await c.next_task()
        for site in (a, b):
            await site.answer(await site.next_task())
        candidates = [await site.next_task() for site in (a, b)]
        assert {task.kind for task in candidates} == {pb.TASK_KIND_EVALUATE}
        await c.answer(held)  # while a version is made it is taken, for the next one
        for site, task in zip((a, b), candidates, strict=True):
            await site.answer(task)
        task = await a.next_task()
        assert (task.kind, task.round) == (pb.TASK_KIND_TRAIN, 2)
        assert not task.inline, "it has evaluated this model, and holds it"
        await a.answer(task)
        for site in (a, c):
            task = await site.next_task()
            assert task.kind == pb.TASK_KIND_EVALUATE
            await site.answer(task)
        await leave(running, a, b, c)
    first, last = history(built)
    assert rows(last) == {"site-a": ("counted", 0), "site-c": ("counted", 1)}
    assert set(first["metrics"]) == {"loss"} and set(last["metrics"]) == {"loss"}


async def test_too_few_sites_pause_the_experiment_and_it_goes_on_when_they_are_back(tmp_path):
    built = stage(tmp_path, "ab", rounds=3, minimum_sites=2, algorithm="fedbuff", options={"k": 2})
    async with built.aggregator() as running:
        a, b = await join(built, running, "a", "b")
        await a.answer(await a.next_task())
        await b.fail(await b.next_task())
        second = await a.next_task()
        assert (second.round, (await b.next_task()).round) == (2, 2)
        await b.cut()
        await a.answer(second)  # the round closes once the other is lost; then too few are left for the next
        assert (await a.hear()).verdict.counted
        await b.connect()
        await b.ready()
        for site in (a, b):
            await site.answer(await site.next_task())
        await leave(running, a, b)
    assert [rows(record) for record in history(built)] == [
        {"site-a": ("counted", 0), "site-b": ("failed", 0)},
        {"site-a": ("counted", 0), "site-b": ("lost", 0)},
        {"site-a": ("counted", 0), "site-b": ("counted", 0)},
    ]


async def stall(site, task, data):
    """Open an upload for a task, and send nothing of it yet."""
    call = site.stub.bidi("PushUpdate")
    await call.write(pb.PushUpdateRequest(header=site.header(task, {"delta": data}, {})))
    assert list((await call.read()).holding.bytes) == [0]
    return call


def piece(data):
    chunk = tensors_pb2.Chunk(offset=0, data=data)
    return pb.PushUpdateRequest(chunk=pb.UpdateChunk(payload=0, chunk=chunk))


async def lose(site, call):
    """The site is away for longer than it may, which ends its upload, and comes back to a new task."""
    await site.cut()
    with pytest.raises(FederationError, match="session of this site is lost"):
        await asyncio.wait_for(call.read(), 30)
    await site.connect()
    await site.ready()
    return await site.next_task()


async def answer_all(*sites):
    """Each answers its next task; they wait for one another, so that the next is of a later round."""
    for site, task in [(site, await site.next_task()) for site in sites]:
        await site.answer(task)


async def test_a_stalled_upload_of_an_older_task_never_reaches_into_another_sites_update(tmp_path):
    plan = {"rounds": 3, "minimum_sites": 1, "algorithm": "fedbuff", "options": {"k": 2}}
    built = stage(tmp_path, "abc", 100_000, **plan)
    async with built.aggregator(site_grace_s=0) as running:
        a, b, c = await join(built, running, "a", "b", "c")
        evil = np.full(100_000, 1e6, np.float32).tobytes()
        call = await stall(b, await b.next_task(), evil)
        await answer_all(a, c)
        tasks = [await a.next_task(), await c.next_task()]
        assert (await lose(b, call)).round == 2
        for site, task in zip((a, c), tasks, strict=True):
            await site.answer(task)
        third = [await a.next_task(), await c.next_task()]
        await a.answer(third[0])
        await call.try_write(piece(evil))
        await c.answer(third[1])
        await leave(running, a, b, c)
    for path in (built.work / "spool").glob("slot-*.bin"):
        assert np.abs(np.fromfile(path, np.float32)).max() < 10, "no byte of it is in any file"
    assert np.abs(weight(built)).max() < 10


async def test_an_upload_that_was_stalled_until_its_site_was_asked_anew_is_not_taken_for_the_new_task(tmp_path):
    built = stage(tmp_path, "ab", 100_000, rounds=3, **FEDASYNC)
    async with built.aggregator(site_grace_s=0) as running:
        a, b = await join(built, running, "a", "b")
        data = bytes(400_000)
        call = await stall(b, await b.next_task(), data)
        await a.answer(await a.next_task())
        second = await a.next_task()
        await call.try_write(piece(data))
        fresh = await lose(b, call)
        assert (second.round, fresh.round) == (2, 2)
        await call.try_write(pb.PushUpdateRequest(commit=pb.UpdateCommit(digests=[payload_digest(data)])))
        await b.answer(fresh)
        await a.answer(second)
        await leave(running, a, b)
    assert [rows(record) for record in history(built)[1:]] == [{"site-b": ("counted", 0)}, {"site-a": ("counted", 1)}]
