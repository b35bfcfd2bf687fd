"""A real aggregator that sends steps instead of models, with scripted sites over real TLS that apply them."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from federation.plan import Plan
from federation.storage.memory import MemoryModel
from federation.storage.safetensors_files import read_model
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec, unpack
from federation.tensors.digest import payload_digest
from federation.testing.aggregators import Stage
from federation.testing.honest_sites import HonestSite
from federation.testing.scripted_sites import Finished
from federation.v1 import aggregator_pb2 as pb

from .stages import run_all

SMALL, LARGE = 2_000, 100_000  # floats: inside a task, and pulled


def schema(elements, dtype=DType.FLOAT32):
    return TensorSchema.of(
        [
            TensorSpec(name="weight", dtype=dtype, shape=(elements,)),
            TensorSpec(name="mean", dtype=DType.FLOAT32, shape=(5,), role=TensorRole.BUFFER),
            TensorSpec(name="seen", dtype=DType.INT64, shape=(), role=TensorRole.BUFFER),
        ]
    )


def stage(tmp_path, letters="ab", elements=LARGE, dtype=DType.FLOAT32, **plan):
    plan = {"sites": len(letters), "rounds": 3, "evaluate_every": 0, "downlink": "rand_k:0.1", **plan}
    return Stage(tmp_path, Plan(**plan), [f"site-{letter}" for letter in letters], schema=schema(elements, dtype))


def rounds(built):
    return json.loads((built.work / "artifacts" / "history.json").read_text())["rounds"]


class Watching(HonestSite):
    """Remembers the payloads each task named, the digest of each model it worked on, and its bytes."""

    def __init__(self, *rest, **options):
        super().__init__(*rest, **options)
        self.named, self.models = [], []

    async def answer(self, task):
        self.named.append([payload.name for payload in task.payloads])
        self.models.append(await self.load(task))
        assert payload_digest(self.models[-1]) == task.payloads[0].digest
        await super().answer(task)


@pytest.mark.parametrize("codec", ["rand_k:0.1", "stc:0.1"], ids=["unbiased", "biased"])
@pytest.mark.parametrize("elements", [SMALL, LARGE], ids=["inside tasks", "pulled"])
async def test_sites_that_hold_the_model_before_are_sent_a_step_to_the_next(tmp_path, elements, codec):
    built = stage(tmp_path, elements=elements, downlink=codec)
    async with built.aggregator() as running:
        a, b = (built.site(name, running.address, Watching, target=2.0) for name in ("site-a", "site-b"))
        assert await run_all(a, b) == ["completed", "completed"]
        assert (await running.ended()).outcome == "completed"
    assert a.named == [["model"], ["model", "step", "buffers"], ["model", "step", "buffers"]]
    assert a.models == b.models
    assert (a.steps, b.steps) == (2, 2)
    whole = built.spec.schema_.federated.nbytes
    first, *rest = [row["bytes_down"] for row in rounds(built)]
    assert first == 2 * whole
    assert all(down < 0.4 * first for down in rest)
    # Sites send half of what is missing from what they hold to 2; the server adds it to its own model.
    held = [unpack(built.spec.schema_.federated, model)["weight"] for model in a.models]
    last = read_model(built.work / "artifacts" / "last.safetensors")[1]
    expected = sum((2.0 - weight.astype(float)) / 2 for weight in held)
    np.testing.assert_allclose(last["weight"], expected, rtol=1e-6)
    assert last["seen"] == 3
    file = read_model(built.work / "checkpoints" / "held.odd.safetensors")[1]
    assert not np.array_equal(file["weight"], last["weight"])
    np.testing.assert_array_equal(file["mean"], last["mean"])


async def test_what_is_evaluated_is_what_sites_train_from_next_and_comes_once(tmp_path):
    built = stage(tmp_path, "a", evaluate_every=1)
    async with built.aggregator() as running:
        site = built.site("site-a", running.address, Watching, target=2.0)
        assert await run_all(site) == ["completed"]
        await running.ended()
    trained, evaluated = site.models[0::2], site.models[1::2]
    assert trained[1:] == evaluated[:-1]
    assert site.steps == 3
    losses = [site.loss(unpack(built.spec.schema_.federated, model)) for model in evaluated]
    assert [row["metrics"]["loss"] for row in rounds(built)] == pytest.approx(losses)


async def go_on(site):
    with pytest.raises(Finished):
        while True:
            await site.answer(await site.next_task())


async def begin(site):
    """Connect, be ready, and return once the aggregator has heard so: a message to oneself comes back after it."""
    await site.connect()
    await site.ready()
    echo = pb.SealedMessage(peer=site.name, purpose="echo", round=1)
    await site.say(pb.ParticipateRequest(sealed=echo))


async def test_a_site_that_joins_late_gets_the_model_whole_and_steps_from_then_on(tmp_path):
    built = stage(tmp_path, "ab", rounds=5, minimum_sites=1, quorum=1, sites=None)
    async with built.aggregator() as running:
        early, late = (built.site(name, running.address, Watching, target=2.0) for name in ("site-a", "site-b"))
        await early.connect()
        await early.ready()
        for _ in range(2):
            await early.answer(await early.next_task())
        task = await early.next_task()
        await begin(late)
        assert (await late.hear()).HasField("sealed")
        await early.answer(task)
        await asyncio.gather(go_on(early), go_on(late))
        for site in (early, late):
            await site.vanish()
        await running.ended()
    assert late.trained == [4, 5]
    assert late.models == early.models[3:]
    assert (early.steps, late.steps) == (4, 1)
    assert late.pulled_bytes < 1.4 * built.spec.schema_.federated.nbytes


async def test_an_aggregator_that_was_killed_goes_on_with_what_sites_hold(tmp_path):
    """The step has no name on disk: who holds the model needs none, who does not fetches it whole."""
    built = stage(tmp_path, rounds=4)
    async with built.aggregator() as running:
        a, b = (built.site(name, running.address, Watching, target=2.0) for name in ("site-a", "site-b"))
        for site in (a, b):
            await site.connect()
            await site.ready()
        for _ in range(2):
            for site in (a, b):
                await site.answer(await site.next_task())
        held = await a.load(await a.next_task())
        for site in (a, b):
            await site.cut()
    first = [*a.models, held]
    async with built.aggregator(epoch=2) as running:
        a, b = (built.site(name, running.address, Watching, target=2.0) for name in ("site-a", "site-b"))
        a._held = {payload_digest(held): held}
        assert await run_all(a, b) == ["completed", "completed"]
        await running.ended()
    assert a.models[0] == b.models[0] == held
    assert a.models == b.models
    assert a.pulled_bytes < b.pulled_bytes - 0.9 * len(held)
    # The same plan undisturbed arrives at the same bits.
    calm = stage(tmp_path / "calm", rounds=4)
    async with calm.aggregator() as running:
        c, d = (calm.site(name, running.address, Watching, target=2.0) for name in ("site-a", "site-b"))
        await run_all(c, d)
        await running.ended()
    assert c.models == first[:2] + a.models
    results = [read_model(each.work / "artifacts" / "last.safetensors")[1]["weight"] for each in (built, calm)]
    np.testing.assert_array_equal(*results)


async def test_half_precision_is_held_in_half_precision_and_stepped_from_float32(tmp_path):
    built = stage(tmp_path, "a", dtype=DType.BFLOAT16, downlink="natural", rounds=6)
    async with built.aggregator() as running:
        site = built.site("site-a", running.address, Watching, target=2.0)
        assert await run_all(site) == ["completed"]
        await running.ended()
    model = MemoryModel(built.spec.schema_.federated, site.models[-1]).arrays()["weight"]
    assert model.dtype == DType.BFLOAT16.numpy
    assert np.abs(model.astype(float) - 2.0).max() < 0.3
