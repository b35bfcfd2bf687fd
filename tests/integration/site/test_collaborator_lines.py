"""A collaborator process and a real aggregator, with lines between them, in the middle of which it is killed."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

from federation.aggregator.config import AggregatorConfig, FixedSite, TlsPaths
from federation.aggregator.process import INITIAL_FILE, SPEC_FILE, Aggregator
from federation.names import Epoch, Role
from federation.storage.safetensors_files import read_model

from ..cables import DOWN, UP, Cable
from .trials import EXPERIMENT, FEDERATION, SITE, WAIT_S

if TYPE_CHECKING:
    from pathlib import Path

ELEMENTS = 2_200_000  # what is left after a cut is worth a line


def _config(folder: Path, trial: Any, tls: Any, initial: Path) -> AggregatorConfig:
    folder.mkdir()
    (folder / SPEC_FILE).write_bytes(trial.manifest.spec_json)
    shutil.copy(initial, folder / INITIAL_FILE)
    return AggregatorConfig(
        federation=FEDERATION,
        experiment=EXPERIMENT,
        epoch=Epoch(1),
        folder=folder,
        tls=TlsPaths(authority=tls.authority, certificate=tls.certificate, key=tls.key),
        director_address=None,
        roster=(FixedSite(site=SITE, train_examples=8, validation_examples=2),),
        site_grace_s=60.0,
    )


async def test_killed_in_the_middle_of_the_model_and_of_the_update_it_goes_on_to_the_same_model(
    tmp_path: Path, make_trial: Any, make_site: Any, pki: Any, wait_for_end: Any
) -> None:
    trial = make_trial(elements=ELEMENTS, rounds=1)
    config = _config(tmp_path / "work", trial, pki.issue(Role.AGGREGATOR, EXPERIMENT), tmp_path / "initial.safetensors")
    aggregator, site = Aggregator(config), make_site(trial)
    running = asyncio.create_task(aggregator.run())
    async with Cable() as cable:
        try:
            await asyncio.wait_for(aggregator.started.wait(), WAIT_S)
            aggregator.driver.lines.port = cable.at(aggregator.driver.lines.port)  # what sites are told
            for way in (DOWN, UP):
                cable.stall_after = {way: 2 << 20}
                cable.stalled.clear()
                child = await site.start(aggregator.address)
                await asyncio.wait_for(cable.stalled.wait(), WAIT_S)
                child.kill()
                await wait_for_end(child)
            cable.stall_after = {}
            child = await site.start(aggregator.address)
            assert (await asyncio.wait_for(running, WAIT_S)).outcome == "completed"
            assert (await wait_for_end(child)).code == 0
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    ups = [line[UP] for line in cable.passed if line[UP] > 100_000]
    assert len(ups) == 2 and ups[1] < 4 * ELEMENTS, "the update went on where it was"
    _, arrays = read_model(config.folder / "artifacts" / "last.safetensors")
    assert (arrays["w"] == 1.0).all()
