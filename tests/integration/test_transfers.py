"""What a collaborator fetches and sends, with an aggregator, both real: which way it goes, and that both count it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from federation.collaborator.downloads import Downloads
from federation.collaborator.exchange import Exchange
from federation.collaborator.link import BulkDialler, Link, LinkHolder
from federation.collaborator.uploads import Uploads
from federation.names import Attempt, RoundNumber, aggregator_server_name
from federation.plan import Plan
from federation.runtime.clock import SystemClock
from federation.storage.checkpoints import read_model
from federation.storage.retained import RetainedFile, RetainedUpdate
from federation.telemetry.metrics import Metrics
from federation.testing.aggregators import EXPERIMENT, FEDERATION, Stage, flat_schema
from federation.testing.honest_sites import HonestSite
from federation.transport.lines import LEAST_BYTES, BulkAddress
from federation.wire.payloads import payload_from_proto

LARGE = LEAST_BYTES // 4 + 1_000  # floats: what travels over a line where there are lines
MEDIUM = 100_000  # too large for a session, too small for a line


class Collaborating(HonestSite):
    """Fetches and sends as a collaborator does."""

    def __init__(self, *rest, folder, **options):
        super().__init__(*rest, **options)
        self.metrics = Metrics()
        self._folder = folder
        self._links = LinkHolder()
        self._downloads = Downloads(
            experiment=EXPERIMENT,
            exchange=Exchange(folder),
            spec=self.meeting.spec,
            links=self._links,
            metrics=self.metrics,
            clock=SystemClock(),
        )
        schemas = {plan.name: plan.schema for plan in self.meeting.spec.uploads()}
        self._uploads = Uploads(links=self._links, metrics=self.metrics, clock=SystemClock(), schemas=schemas)

    async def connect(self, change=None):
        welcome = await super().connect(change)
        name = aggregator_server_name(FEDERATION, EXPERIMENT)
        bulk = None
        if welcome.bulk_port:
            address = BulkAddress("127.0.0.1", welcome.bulk_port, server_name=name, tls=self._tls)
            bulk = BulkDialler(address)
        self._links.set(Link(stub=self.stub, call=self._session, epoch=welcome.epoch, bulk=bulk))
        return welcome

    async def load(self, task, index=0):
        path = await self._downloads.model(payload_from_proto(task.payloads[index], with_digest=True), {})
        return path.read_bytes()

    async def send(self, task, header, payloads):
        (name, data), path = *payloads.items(), self._folder / "delta.bin"
        path.write_bytes(data)
        file = RetainedFile(payload=name, path=path, nbytes=len(data), digest=None)
        await self._uploads.push(
            RetainedUpdate(
                round=RoundNumber(header.round),
                attempt=Attempt(header.attempt),
                header=header.SerializeToString(),
                files=(file,),
            )
        )


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
        site = built.site("site-a", running.address, Collaborating, folder=tmp_path / "site")
        async with site:
            assert await asyncio.wait_for(site.run(), 30) == "completed"
        await running.ended()
        assert begun(running.aggregator.metrics) == {("out", way): 2, ("in", way): 2}
    assert begun(site.metrics) == {("in", way): 2, ("out", way): 2}
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    np.testing.assert_array_equal(arrays["weight"], np.full(elements, 0.75, np.float32))
