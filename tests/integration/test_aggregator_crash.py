"""The aggregator as a process of its own, killed with SIGKILL or stopped with SIGTERM, and started again.

Not tested here: power loss (the journal's and the checkpoints' fsyncs are the disk's to keep), and the two instants
inside one commit, which `tests/unit/aggregator` goes through one by one.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack, suppress

import numpy as np
import pytest

from federation.errors import FederationError, Refusal, UpdateRejectedError
from federation.plan import Plan
from federation.runtime.records import read_exit_record
from federation.storage.safetensors_files import read_model
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.honest_sites import HonestSite
from federation.testing.scripted_sites import Finished


def stage(tmp_path, sites="ab", schema=None, **plan):
    names = [f"site-{letter}" for letter in sites]
    return Stage(tmp_path, Plan(**{"sites": len(sites), "rounds": 4, **plan}), names, schema=schema)


async def begin(built, running, *names):
    """Sites with a session that are ready, in order."""
    sites = [built.site(name, running.address, target=float(index + 1)) for index, name in enumerate(names)]
    for site in sites:
        await site.connect()
        await site.ready()
    return sites


async def test_after_a_kill_an_admitted_update_is_kept_and_not_asked_for_again(tmp_path):
    built = stage(tmp_path, rounds=1)
    async with built.process(1) as first:
        a, b = await begin(built, first, "site-a", "site-b")
        await a.answer(await a.next_task())
        await b.next_task()
        first.kill()
        await first.ended()
        await a.vanish()
        await b.vanish()
    async with built.process(2) as second:
        a, b = await begin(built, second, "site-a", "site-b")
        assert b.welcome.epoch == 2 and b.welcome.round == 1
        await b.answer(await b.next_task())
        for site in (a, b):
            await site.answer(await site.next_task())
        for site in (a, b):
            with pytest.raises(Finished):
                await site.next_task()
            await site.vanish()
        assert await second.ended() == 0
    assert a.trained == [] and b.trained == [1]
    assert read_exit_record(built.work).outcome == "completed"
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    np.testing.assert_allclose(arrays["weight"], 0.75)


async def test_after_a_kill_the_running_median_norm_is_that_of_the_rounds_before(tmp_path):
    built = stage(tmp_path, rounds=2, quorum=1, max_norm_ratio=3.0, evaluate_every=0)
    async with built.process(1) as first:
        sites = await begin(built, first, "site-a", "site-b")
        for site in sites:
            await site.answer(await site.next_task())
        for site in sites:
            await site.next_task()  # of round 2: the first is committed
        first.kill()
        await first.ended()
        for site in sites:
            await site.vanish()
    async with built.process(2) as second:
        a, b = await begin(built, second, "site-a", "site-b")
        b.target = 1000.0
        with pytest.raises(UpdateRejectedError, match="max_norm_ratio allows 3 times") as caught:
            await b.answer(await b.next_task())
        await a.answer(await a.next_task())
        for site in (a, b):
            with pytest.raises(Finished):
                await site.next_task()
            await site.vanish()
        assert await second.ended() == 0
    assert caught.value.refusal is Refusal.NORM
    last = json.loads((built.work / "artifacts" / "history.json").read_text())["rounds"][1]["sites"][1]
    assert last["outcome"] == "refused" and last["update_norm"] > 100


async def test_after_a_kill_during_evaluation_the_same_candidate_is_made_again(tmp_path):
    built = stage(tmp_path, rounds=1)
    async with built.process(1) as first:
        sites = await begin(built, first, "site-a", "site-b")
        for site in sites:
            await site.answer(await site.next_task())
        candidates = [(await site.next_task()).payloads[0].digest for site in sites]
        first.kill()
        await first.ended()
        for site in sites:
            await site.vanish()
    async with built.process(2) as second:
        sites = await begin(built, second, "site-a", "site-b")
        tasks = [await site.next_task() for site in sites]
        assert [task.payloads[0].digest for task in tasks] == candidates
        for site, task in zip(sites, tasks, strict=True):
            await site.answer(task)
        assert await second.ended() == 0
        assert sites[0].trained == sites[1].trained == []
        for site in sites:
            await site.vanish()


class Tenacious(HonestSite):
    """Comes back to whatever aggregator there is, and never accepts to be asked twice for what was admitted."""

    step = staticmethod(lambda: None)
    admitted: set

    async def send(self, task, header, payloads):
        assert (task.round, task.attempt) not in self.admitted
        self.step()
        if (await self.push(header, payloads)).admitted:
            self.admitted.add((task.round, task.attempt))

    async def report(self, task, metrics, examples=None):
        await super().report(task, metrics, examples)
        self.step()


ALL_IN = {"algorithm": "fedbuff", "options": {"k": 2}}
"""A buffer as large as there are sites: the order in which updates arrive makes no difference."""


@pytest.mark.parametrize(
    ("elements", "plan"),
    [
        pytest.param(10, {}, id="inline"),
        pytest.param(300_000, {}, id="streamed"),
        pytest.param(300_000, ALL_IN, id="buffered"),
    ],
)
async def test_killed_again_and_again_it_arrives_at_the_same_bytes(tmp_path, elements, plan):
    plan = {"rounds": 3, **plan}
    undisturbed = stage(tmp_path / "calm", schema=flat_schema(elements), **plan)
    built = stage(tmp_path / "wild", schema=flat_schema(elements), **plan)
    async with undisturbed.aggregator() as calm:
        sites = await _unconnected(undisturbed, calm)
        await asyncio.gather(*(site.run() for site in sites))
        for site in sites:
            await site.vanish()
        assert (await calm.ended()).outcome == "completed"
    steps, admitted, outcomes = 0, ({}, {}), []
    for epoch in range(1, 40):
        async with built.process(epoch, site_grace_s=30) as running:

            def step(running=running, budget=steps + 2 + epoch % 3):
                nonlocal steps
                steps += 1
                if steps == budget:
                    running.kill()

            sites = await _unconnected(built, running, kind=Tenacious)
            for index, site in enumerate(sites):
                site.step = step
                site.admitted = admitted[index].setdefault("set", set())
            outcomes = await asyncio.gather(*(site.run() for site in sites), return_exceptions=True)
            for site in sites:
                await site.vanish()
            assert all(isinstance(outcome, (str, FederationError)) for outcome in outcomes), outcomes
            if await running.ended() == 0:
                break
    assert epoch > 3, "it was killed several times"
    assert read_exit_record(built.work).outcome == "completed"
    for name in ("last", "best"):
        left, right = (b.work / "artifacts" / f"{name}.safetensors" for b in (undisturbed, built))
        assert left.read_bytes() == right.read_bytes()
    rounds = json.loads((built.work / "artifacts" / "history.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == list(range(1, plan["rounds"] + 1))
    assert all(site["outcome"] == "counted" for row in rounds for site in row["sites"])


async def _unconnected(built, running, kind=HonestSite):
    return [
        built.site(name, running.address, kind, target=float(index + 1))
        for index, name in enumerate(("site-a", "site-b"))
    ]


async def test_sigterm_drains_and_the_next_process_goes_on_at_the_same_port(tmp_path):
    built = stage(tmp_path, rounds=2)
    async with built.process(1) as first:
        a, b = await begin(built, first, "site-a", "site-b")
        await a.answer(await a.next_task())
        first.child.terminate()
        assert await first.ended() == 0
        assert read_exit_record(built.work).outcome == "drained"
        for site in (a, b):
            await site.vanish()
    async with built.process(2) as second:
        assert second.address == first.address
        results = await asyncio.gather(*(site.run() for site in await _unconnected(built, second)))
        assert results == ["completed", "completed"]
        assert await second.ended() == 0


async def test_a_second_process_finds_the_folder_held_and_a_lower_epoch_is_superseded(tmp_path):
    built = stage(tmp_path)
    async with built.process(2):
        with pytest.raises(RuntimeError, match="held by process"):
            async with built.process(3):
                pass
    with pytest.raises(RuntimeError, match="superseded"):
        async with built.process(1):
            pass


async def test_a_port_in_use_is_an_error_that_names_the_range(tmp_path):
    built = stage(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"no port from {port} to {port}"):
            async with built.process(1, ports=(port, port)):
                pass


async def test_an_aggregator_that_ended_ends_again_when_it_is_started_again(tmp_path):
    built = stage(tmp_path, rounds=1)
    for epoch in (1, 2):
        async with built.process(epoch) as running:
            if epoch == 1:
                await asyncio.gather(*(site.run() for site in await _unconnected(built, running)))
            assert await running.ended() == 0
        assert read_exit_record(built.work).outcome == "completed"


async def _story(built, *, kills):
    """Sites a and b are quick, c is slow. Killed with an update in the buffer, another in training since round 1."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(built.process(1, site_grace_s=30))
        a, b, c = await begin(built, running, "site-a", "site-b", "site-c")
        slow = await c.next_task()
        for site in (b, a):
            await site.answer(await site.next_task())
        second = {site: await site.next_task() for site in (a, b)}
        await b.answer(second[b])
        if kills:
            running.kill()
            await running.ended()
            pending = {site.name: site.pending for site in (a, b, c)}
            for site in (a, b, c):
                await site.vanish()
            running = await stack.enter_async_context(built.process(2, site_grace_s=30))
            a, b, c = (built.site(site.name, running.address, target=site.target) for site in (a, b, c))
            for site in (a, b, c):
                site.pending = pending[site.name]
                await site.connect()
                await site.ready()
            again = await c.next_task()
            assert (again.round, again.attempt) == (slow.round, slow.attempt) == (1, 1)
            assert again.payloads[0].digest == slow.payloads[0].digest
            slow = again
            second = {a: await a.next_task()}
            assert second[a].round == 2
        await c.answer(slow)
        for site in (a, b, c):
            with suppress(Finished):
                while True:
                    await site.next_task()
            await site.vanish()
        assert await running.ended() == 0
        return b


async def test_after_a_kill_the_buffer_is_as_it_was_and_the_slow_site_goes_on_with_its_version(tmp_path):
    plan = {"algorithm": "fedbuff", "options": {"k": 2}, "evaluate_every": 0, "rounds": 2}
    calm, wild = (stage(tmp_path / name, "abc", flat_schema(100_000), **plan) for name in ("calm", "wild"))
    await _story(calm, kills=False)
    in_buffer = await _story(wild, kills=True)
    assert in_buffer.trained == [], "what waits in the buffer is not asked for again"
    left, right = (b.work / "artifacts" / "last.safetensors" for b in (calm, wild))
    assert left.read_bytes() == right.read_bytes()
    for built in (calm, wild):
        rounds = json.loads((built.work / "artifacts" / "history.json").read_text())["rounds"]
        assert [{row["site"]: row["staleness"] for row in record["sites"]} for record in rounds] == [
            {"site-a": 0, "site-b": 0},
            {"site-b": 0, "site-c": 1},
        ]


async def test_after_a_kill_while_contributors_evaluate_those_that_came_first_make_the_same_candidate(tmp_path):
    plan = {"algorithm": "fedbuff", "options": {"k": 2}, "rounds": 1}
    built = stage(tmp_path, "abc", **plan)
    async with built.process(1, site_grace_s=30) as first:
        a, b, c = await begin(built, first, "site-a", "site-b", "site-c")
        for site in (c, b):
            await site.answer(await site.next_task())
        candidate = (await c.next_task()).payloads[0].digest
        await a.answer(await a.next_task())
        first.kill()
        await first.ended()
        for site in (a, b, c):
            await site.vanish()
    async with built.process(2, site_grace_s=30) as second:
        a, b, c = await begin(built, second, "site-a", "site-b", "site-c")
        for site in (b, c):
            task = await site.next_task()
            assert task.payloads[0].digest == candidate
            await site.answer(task)
        for site in (a, b, c):
            with pytest.raises(Finished):
                await site.next_task()
            await site.vanish()
        assert await second.ended() == 0
        assert a.trained == b.trained == c.trained == []


async def test_a_site_that_missed_the_verdict_on_an_older_task_hears_it_after_the_restart(tmp_path):
    plan = {"algorithm": "fedasync", "options": {"alpha": 0.5}, "evaluate_every": 0, "rounds": 5}
    built = stage(tmp_path, "ab", **plan)
    async with built.process(1, site_grace_s=30) as first:
        a, b = await begin(built, first, "site-a", "site-b")
        old = await b.next_task()
        await a.answer(await a.next_task())
        second = await a.next_task()
        await b.cut()
        await b.answer(old)
        await a.answer(second)
        assert (await a.next_task()).round == 4, "both are committed"
        first.kill()
        await first.ended()
        for site in (a, b):
            await site.vanish()
    async with built.process(2, site_grace_s=30) as second:
        a, again = (built.site(name, second.address) for name in ("site-a", "site-b"))
        again.pending = b.pending
        for site in (a, again):
            await site.connect()
            await site.ready()
        assert (await again.next_task()).round == 3, "it was asked while it was away"
        assert [(verdict.round, verdict.counted) for verdict in again.verdicts] == [(1, True)]
        for site in (a, again):
            await site.vanish()


async def test_an_update_whose_version_went_with_a_power_loss_is_given_up_and_its_site_asked_anew(tmp_path):
    plan = {"algorithm": "fedasync", "options": {"alpha": 0.5}, "rounds": 1}
    built = stage(tmp_path, "a", **plan)
    async with built.process(1, site_grace_s=30) as first:
        (a,) = await begin(built, first, "site-a")
        await a.answer(await a.next_task())
        await a.next_task()  # evaluate: the update still waits for its commit
        first.kill()
        await first.ended()
        await a.vanish()
    (record,) = (built.work / "spool").glob("admitted-*")
    assert not record.read_bytes().startswith(b"-")
    (built.work / "checkpoints" / "versions" / "00000001-model.safetensors").unlink()
    async with built.process(2, site_grace_s=30) as second:
        assert record.read_bytes().startswith(b"-")
        a = built.site("site-a", second.address)
        assert await a.run() == "completed"
        assert a.trained == [1]
        assert await second.ended() == 0
