"""How most stories of a director begin."""

from __future__ import annotations

from typing import Any


async def start(world: Any, make_package: Any, make_shard: Any, *sites: str) -> tuple[str, list[Any], Any, Any]:
    """Submit, let the sites attend, and bring the aggregator up; nobody has answered yet."""
    envoys = [await world.attend(site, make_shard()) for site in sites]
    experiment = await make_package(sites=len(sites)).submit(world)
    process = await world.launcher.next()
    aggregator = await world.supervise(process)
    await aggregator.welcomed()
    return experiment, envoys, process, aggregator
