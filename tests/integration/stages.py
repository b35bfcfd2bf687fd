"""A stage for one aggregator and its sites, what its history says, and all sites at once."""

from __future__ import annotations

import asyncio
import json

from federation.plan import Plan
from federation.testing.aggregators import Stage


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
