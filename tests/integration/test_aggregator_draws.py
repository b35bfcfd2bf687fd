"""The aggregator as a process of its own whose plan draws some of the sites: killed, it draws as if it had not been."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from federation.errors import UpdateRejectedError
from federation.names import SiteName
from federation.plan import Plan
from federation.rounds.sampling import draw_sites
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.clock import FakeClock
from federation.testing.scripted_sites import Finished

NAMES = tuple(f"site-{letter}" for letter in "abcde")
PLAN = {"sites": 5, "sample": 2, "seed": 3, "rounds": 5, "minimum_sites": 1, "evaluate_every": 0}


async def there(built, running, names):
    """Sites by name that have said that they are ready, one after the other."""
    sites = {}
    for index, name in enumerate(NAMES):
        if name in names:
            sites[name] = built.site(name, running.address, target=float(index + 1))
            await sites[name].connect()
            await sites[name].ready()
    return sites


async def vanish(sites):
    for site in sites.values():
        await site.vanish()


async def complete(sites, running):
    """Let every site do what it is asked, to the end."""

    async def obey(site):
        try:
            while True:
                await site.answer(await site.next_task())
        except Finished as end:
            return end.outcome

    assert set(await asyncio.gather(*map(obey, sites.values()))) == {"completed"}
    await vanish(sites)
    assert await running.ended() == 0


def history(built):
    """Who counted in each round, and what came out of it."""
    rounds = json.loads((built.work / "artifacts" / "history.json").read_text())["rounds"]
    return [([row["site"] for row in record["sites"]], record["model_digest"]) for record in rounds]


async def calm(folder, names=NAMES, **plan):
    """The history of a run that nothing happens to."""
    built = Stage(folder, Plan(**{**PLAN, **plan}), NAMES)
    async with built.process(1) as running:
        await complete(await there(built, running, names), running)
    return history(built)


async def lead(sites, drawn, *, first, last, admitted=()):
    """Let sites answer from round `first` on, but those whose updates are in; return the tasks of round `last`."""
    for number in range(first, last + 1):
        names = [name for name in drawn[number - 1][0] if number > first or name not in admitted]
        tasks = {name: await sites[name].next_task() for name in names}
        assert {task.round for task in tasks.values()} == {number}
        if number < last:
            for name, task in tasks.items():
                await sites[name].answer(task)
    return tasks


FRACTION = {"sampler": "fraction:0.4", "sample": None}


@pytest.mark.parametrize(("late", "sampler"), [("site-a", {}), ("site-d", {}), ("site-d", FRACTION)])
async def test_after_a_kill_every_site_that_was_there_is_waited_for_before_any_is_drawn(tmp_path, late, sampler):
    undisturbed = await calm(tmp_path / "calm", **sampler)
    built = Stage(tmp_path / "wild", Plan(**{**PLAN, **sampler}), NAMES)
    async with built.process(1, site_grace_s=60) as first:
        sites = await there(built, first, NAMES)
        await lead(sites, undisturbed, first=1, last=2)
        first.kill()
        await first.ended()
        await vanish(sites)
    async with built.process(2, site_grace_s=60) as second:
        sites = await there(built, second, set(NAMES) - {late})
        sites |= await there(built, second, {late})
        await complete(sites, second)
    assert history(built) == undisturbed


async def test_killed_in_one_round_after_the_other_it_draws_as_in_a_calm_run(tmp_path):
    undisturbed = await calm(tmp_path / "calm")
    built = Stage(tmp_path / "wild", Plan(**PLAN), NAMES)
    admitted: set[str] = set()
    for epoch, (first, last) in enumerate([(1, 1), (1, 2), (2, 4)], start=1):
        async with built.process(epoch, site_grace_s=60) as running:
            sites = await there(built, running, NAMES[epoch:]) | await there(built, running, NAMES[:epoch])
            tasks = await lead(sites, undisturbed, first=first, last=last, admitted=admitted)
            admitted = set(list(tasks)[:1])
            for name in admitted:
                await sites[name].answer(tasks[name])
            running.kill()
            await running.ended()
            await vanish(sites)
    async with built.process(4, site_grace_s=60) as running:
        await complete(await there(built, running, NAMES), running)
    assert history(built) == undisturbed


async def miss(sites):
    """Have the first attempt miss its quorum because an update is refused; return who is asked in the second."""
    first = draw_sites(map(SiteName, NAMES), sample=2, seed=PLAN["seed"], round_number=1, attempt=1)
    refused, other = (sites[name] for name in first)
    await other.answer(await other.next_task())
    honest, refused.target = refused.target, 1000.0
    with pytest.raises(UpdateRejectedError, match="max_norm"):
        await refused.answer(await refused.next_task())
    refused.target = honest
    there = [SiteName(name) for name in NAMES if name != refused.name]
    return draw_sites(there, sample=2, seed=PLAN["seed"], round_number=1, attempt=2)


async def test_after_a_kill_a_site_that_an_earlier_attempt_refused_is_left_out_of_the_draw(tmp_path):
    calm, wild = (Stage(tmp_path / name, Plan(**PLAN, max_norm=20.0), NAMES) for name in ("calm", "wild"))
    async with calm.process(1) as running:
        sites = await there(calm, running, NAMES)
        await miss(sites)
        await complete(sites, running)
    async with wild.process(1, site_grace_s=60) as first:
        sites = await there(wild, first, NAMES)
        for name in await miss(sites):
            assert (await sites[name].next_task()).attempt == 2
        first.kill()
        await first.ended()
        await vanish(sites)
    async with wild.process(2, site_grace_s=60) as second:
        await complete(await there(wild, second, NAMES), second)
    assert history(wild) == history(calm)


def noted(built):
    """Who is there, as the journal says now."""
    lines = [json.loads(line.partition(" ")[2]) for line in (built.work / "journal").read_text().split("\n")[:-1]]
    return next(line["body"]["sites"] for line in reversed(lines) if line["kind"] == "present")


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param({"quorum": 1}, id="in rounds"),
        pytest.param({"algorithm": "fedbuff", "options": {"k": 2}}, id="asynchronous"),
    ],
)
async def test_after_a_kill_nobody_waits_for_a_site_that_was_lost_before_it(tmp_path, plan):
    # Large enough that a site pulls the model: each call is a look at the journal later, however busy the machine is.
    built = Stage(tmp_path, Plan(sites=3, minimum_sites=1, rounds=2, **plan), NAMES[:3], schema=flat_schema(100_000))
    async with built.process(1, site_grace_s=0) as first:
        sites = await there(built, first, NAMES[:3])
        tasks = {name: await site.next_task() for name, site in sites.items()}
        await sites.pop("site-c").vanish()
        while noted(built) != ["site-a", "site-b"]:
            await sites["site-a"].pull(tasks["site-a"].payloads[0])
        first.kill()
        await first.ended()
        await vanish(sites)
    async with built.aggregator(epoch=2, clock=FakeClock(now=time.time())) as second:  # whose time does not pass
        sites = await there(built, second, NAMES[:2])
        assert [(await site.next_task()).round for site in sites.values()] == [1, 1]
        await vanish(sites)
