"""What a collaborator fetches and sends, with an aggregator, both real: which way it goes, and that both count it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from federation.plan import Plan
from federation.storage.safetensors_files import read_model
from federation.testing.aggregators import EXPERIMENT, Stage, flat_schema
from federation.transport.lines import LEAST_BYTES

from .cables import LineSite, Place

LARGE = LEAST_BYTES // 4 + 1_000  # floats: what travels over a line where there are lines
MEDIUM = 100_000  # too large for a session, too small for a line


def begun(metrics):
    """Transfers so far, by direction and way."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {
        (sample.labels["direction"], sample.labels["way"]): sample.value
        for sample in samples
        if sample.name == "federation_transfers_total"
    }


@pytest.mark.parametrize(
    ("elements", "bulk_ports", "way"),
    [
        pytest.param(LARGE, (0, 0), "line", id="large"),
        pytest.param(LARGE, None, "call", id="large, without lines"),
        pytest.param(MEDIUM, (0, 0), "call", id="medium"),
    ],
)
async def test_what_is_large_goes_over_a_line_if_there_is_one_and_both_ends_count_which_way(
    tmp_path, elements, bulk_ports, way
):
    plan = Plan(sites=1, rounds=2, evaluate_every=0)
    built = Stage(tmp_path, plan, ["site-a"], schema=flat_schema(elements))
    (tmp_path / "site").mkdir()
    async with built.aggregator(bulk_ports=bulk_ports) as running:
        place = Place(tmp_path / "site", built.spec, EXPERIMENT)
        site = built.site("site-a", running.address, LineSite, place=place)
        async with site:
            assert await asyncio.wait_for(site.run(), 30) == "completed"
        await running.ended()
        assert begun(running.aggregator.metrics) == {("out", way): 2, ("in", way): 2}
    assert begun(place.metrics) == {("in", way): 2, ("out", way): 2}
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    np.testing.assert_array_equal(arrays["weight"], np.full(elements, 0.75, np.float32))
