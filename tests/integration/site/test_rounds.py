"""Sites and the real aggregator: whole experiments over mutual TLS, every process but the director real."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from federation.aggregator.config import AggregatorConfig, FixedSite, TlsPaths
from federation.aggregator.process import Aggregator
from federation.names import Epoch, Role, SiteName
from federation.storage.safetensors_files import write_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)
EXPERIMENT = "trial-00000001"


@pytest.fixture
def aggregator_config(tmp_path: Path, pki: Any) -> Any:
    def make(trial: Any, *sites: str, epoch: int = 1) -> AggregatorConfig:
        folder = tmp_path / "aggregator"
        if not folder.exists():
            folder.mkdir()
            (folder / "spec.json").write_bytes(trial.manifest.spec_json)
            write_model(folder / "initial.safetensors", trial.spec.schema_, trial.arrays)
        tls = pki.issue(Role.AGGREGATOR, EXPERIMENT)
        return AggregatorConfig(
            federation="care",
            experiment=EXPERIMENT,
            epoch=Epoch(epoch),
            folder=folder,
            tls=TlsPaths(authority=tls.authority, certificate=tls.certificate, key=tls.key),
            director_address=None,
            roster=tuple(FixedSite(site=SiteName(site), train_examples=8, validation_examples=2) for site in sites),
        )

    return make


async def test_two_sites_train_a_model_together(
    make_trial: Any, make_site: Any, aggregator_config: Any, wait_for_end: Any, tmp_path: Path
) -> None:
    trial = make_trial("model['w'] += 1 if 'south' in str(round.site) else 0", sites=2)
    aggregator = Aggregator(aggregator_config(trial, "north", "south"))
    running = asyncio.create_task(aggregator.run())
    await asyncio.wait_for(aggregator.started.wait(), 30)
    sites = [make_site(trial), replace(make_site(trial), folder=tmp_path / "other", name=SiteName("south"))]
    started = [await site.start(aggregator.address) for site in sites]
    record = await asyncio.wait_for(running, 90)
    assert record.outcome == "completed", record
    for child, site in zip(started, sites, strict=True):
        assert (await wait_for_end(child)).record.outcome == "finished", site.log
    model = load_file(tmp_path / "aggregator" / "artifacts" / "last.safetensors")
    # Each round adds its number, and half of one more: only one of two sites of equal weight adds it.
    assert model["w"].tolist() == [pytest.approx(1 + 2 + 3 + 1.5)] * 8
    rpc = aggregator.metrics.rpc_total.collect()[0].samples
    calls = {(line.labels["method"], line.labels["code"]) for line in rpc if line.value and "method" in line.labels}
    # Updates this small went through the sessions. Nothing was wrong, so nothing looks wrong.
    assert {call for call in calls if call[0] != "Participate"} == set()


async def test_an_aggregator_that_is_started_again_finds_its_sites(
    make_trial: Any, make_site: Any, aggregator_config: Any, wait_for_end: Any, tmp_path: Path
) -> None:
    trial = make_trial()
    first = Aggregator(aggregator_config(trial, "north"))
    running = asyncio.create_task(first.run())
    await asyncio.wait_for(first.started.wait(), 30)
    child = await make_site(trial).start(first.address)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    # The second prefers the port of the first, so the site dials the same address.
    second = Aggregator(aggregator_config(trial, "north", epoch=2))
    record = await asyncio.wait_for(second.run(), 90)
    assert record.outcome == "completed"
    assert (await wait_for_end(child)).record.outcome == "finished"
    history = json.loads((tmp_path / "aggregator" / "artifacts" / "history.json").read_text())
    assert len(history["rounds"]) == 3
    model = load_file(tmp_path / "aggregator" / "artifacts" / "last.safetensors")
    assert np.allclose(model["w"], 6.0)


KILLED = """
import os
if "north" in str(round.site) and round.number == 3 and not os.path.exists("killed"):
    open("killed", "w").close()
    os.kill(os.getppid(), 9)
"""


async def test_a_killed_site_goes_on_with_steps_from_the_model_in_its_folder(
    make_trial: Any, make_site: Any, aggregator_config: Any, wait_for_end: Any, tmp_path: Path
) -> None:
    elements = 100_000
    trial = make_trial(KILLED, elements=elements, sites=2, rounds=5, downlink="stc:0.1")
    aggregator = Aggregator(aggregator_config(trial, "north", "south"))
    running = asyncio.create_task(aggregator.run())
    await asyncio.wait_for(aggregator.started.wait(), 30)
    sites = [make_site(trial), replace(make_site(trial), folder=tmp_path / "other", name=SiteName("south"))]
    started = [await site.start(aggregator.address) for site in sites]
    await wait_for_end(started[0])
    started[0] = await sites[0].start(aggregator.address)
    record = await asyncio.wait_for(running, 90)
    assert record.outcome == "completed", record
    for child, site in zip(started, sites, strict=True):
        assert (await wait_for_end(child)).record.outcome == "finished", site.log
    # Whatever sites hold, each round adds its number to the server's model.
    model = load_file(tmp_path / "aggregator" / "artifacts" / "last.safetensors")
    np.testing.assert_allclose(model["w"], 15.0)
    history = json.loads((tmp_path / "aggregator" / "artifacts" / "history.json").read_text())
    down = {row["site"]: [] for row in history["rounds"][0]["sites"]}
    for entry in history["rounds"]:
        for row in entry["sites"]:
            down[row["site"]].append(row["bytes_down"])
    for site, counted in down.items():
        assert counted[0] >= 4 * elements, site
        assert max(counted[1:]) < 0.1 * 4 * elements, (site, counted)
