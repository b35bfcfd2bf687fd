"""Shards as real trainers find them, with a clock of the test's own for the pauses between."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from envoy.catalogue import Catalogue
from federation.collaborator.config import ShardSettings, TrainerOptions
from federation.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

DIES = """
import os, pathlib

class Dies:
    def __init__(self):
        with (pathlib.Path(__file__).parent / "deaths").open("a") as file:
            file.write("+")
        os.kill(os.getpid(), 9)
"""


async def test_a_shard_that_kills_its_every_trainer_is_given_up_and_the_others_are_offered(
    tmp_path: Path, shard_code: Path
) -> None:
    (shard_code / "attic_shards.py").write_text(DIES)
    clock = FakeClock()
    catalogue = Catalogue(
        [
            ShardSettings(name="attic", kind="numbers", factory="attic_shards:Dies"),
            ShardSettings(name="ward", kind="numbers", factory="ward_shards:Numbers"),
        ],
        TrainerOptions(interpreter=sys.executable, python_path=(shard_code,), sandbox="none"),  # type: ignore[arg-type]
        tmp_path / "describing",
        hidden=(),
        timeout_s=60,
        clock=clock,
    )
    describing = asyncio.create_task(catalogue.describe())
    for _ in range(4):
        await clock.until_waiting()
        clock.advance(60)
    await describing
    assert (catalogue.problems, list(catalogue.offered)) == ({"attic": "TrainerDied"}, ["ward"])
    assert (shard_code / "deaths").read_text() == "+" * 6, "once with the other, then five times alone"
