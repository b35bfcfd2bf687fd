"""The aggregator as a process of its own, killed with SIGKILL or stopped with SIGTERM, and started again.

Not tested here: power loss (the journal's and the checkpoints' fsyncs are the disk's to keep), and the two instants
inside one commit, which `tests/unit/aggregator` goes through one by one.
"""

from __future__ import annotations

import asyncio
import json
import socket

import numpy as np
import pytest

from federation.errors import FederationError, Refusal, UpdateRejectedError
from federation.plan import Plan
from federation.runtime.records import read_exit_record
from federation.storage.checkpoints import read_model
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.sites import Finished, HonestSite


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


@pytest.mark.parametrize("elements", [10, 300_000], ids=["inline", "streamed"])
async def test_killed_again_and_again_it_arrives_at_the_same_bytes(tmp_path, elements):
    undisturbed = stage(tmp_path / "calm", rounds=6, schema=flat_schema(elements))
    built = stage(tmp_path / "wild", rounds=6, schema=flat_schema(elements))
    async with undisturbed.process(1) as calm:
        await asyncio.gather(*(site.run() for site in await _unconnected(undisturbed, calm)))
        assert await calm.ended() == 0
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
    assert [row["round"] for row in rounds] == [1, 2, 3, 4, 5, 6]
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
