"""A real aggregator running methods other than FedAvg, and compressed updates, with scripted sites over real TLS."""

from __future__ import annotations

import numpy as np
import pytest

from federation.compression import encode_payload, load_codec, max_payload_bytes
from federation.errors import PlanError, Refusal, UpdateRejectedError
from federation.plan import Plan
from federation.storage.safetensors_files import read_model
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.honest_sites import HonestSite
from federation.v1 import aggregator_pb2 as pb

from .stages import history, run_all

ELEMENTS = 100_000
CODEC = "rand_k:0.1"


def stage(tmp_path, sites="ab", elements=ELEMENTS, **plan):
    plan = {"sites": len(sites), "rounds": 2, "evaluate_every": 0, **plan}
    return Stage(tmp_path, Plan(**plan), [f"site-{letter}" for letter in sites], schema=flat_schema(elements))


async def test_scaffold_keeps_its_control_beside_the_model_and_sends_it_with_it(tmp_path):
    built = stage(tmp_path, algorithm="scaffold")
    seen = []

    class Watching(HonestSite):
        async def answer(self, task):
            seen.append([payload.name for payload in task.payloads])
            control = await self.fetch(task.payloads[1], {part.digest: part.data for part in task.inline})
            seen.append(float(np.frombuffer(control, dtype="<f4")[0]))
            await super().answer(task)

    async with built.aggregator() as running:
        a = built.site("site-a", running.address, Watching, target=1.0)
        b = built.site("site-b", running.address, target=3.0)
        assert await run_all(a, b) == ["completed", "completed"]
        assert (await running.ended()).outcome == "completed"
    # x: 0 → 1 → 1.5; the scripted sites send their change once more as the control's, both sites of N = 2.
    assert seen == [["model", "control"], 0.0, ["model", "control"], 1.0]
    assert (read_model(built.work / "artifacts" / "last.safetensors")[1]["weight"] == 1.5).all()
    _, slots = read_model(built.work / "checkpoints" / "method-control.even.safetensors")
    assert (slots["weight"] == 1.5).all()
    assert [row["total_sites"] for row in history(built)["rounds"]] == [2, 2]


async def test_compressed_updates_lie_in_the_spool_as_they_came_and_count_as_what_they_decode_to(tmp_path):
    built = stage(tmp_path, rounds=1, compression=CODEC)
    async with built.aggregator() as running:
        sites = [built.site(name, running.address, target=1.0) for name in ("site-a", "site-b")]
        assert await run_all(*sites) == ["completed", "completed"]
        await running.ended()
    row = history(built)["rounds"][0]
    flat = 4 * ELEMENTS
    assert all(0 < site["bytes_up"] < 0.2 * flat for site in row["sites"])
    weight = read_model(built.work / "artifacts" / "last.safetensors")[1]["weight"]
    # Both sites have the same seed: a tenth of the elements is ten times the change of 0.5, the others are 0.
    assert set(np.unique(weight)) == {np.float32(0.0), np.float32(5.0)}
    assert np.count_nonzero(weight) == ELEMENTS // 10


class Hostile(HonestSite):
    """Sends a frame of its own making; what is said to it is remembered."""

    def __init__(self, *rest, make, **options):
        super().__init__(*rest, **options)
        self.make = make
        self.refusals = []

    async def send(self, task, header, payloads):
        data = self.make(payloads["delta"])
        header.payloads[0].encoded_bytes = len(data)
        try:
            await self.push(header, {"delta": data})
        except UpdateRejectedError as error:
            self.refusals.append(error)
            self.pending = None


def _not_finite(frame):
    schema = flat_schema(ELEMENTS)
    data = bytearray(encode_payload(schema, {"weight": np.ones(ELEMENTS, np.float32)}, load_codec("identity"), seed=0))
    data[-4:] = np.float32(np.nan).tobytes()
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        pytest.param(lambda frame: b"nonsense", Refusal.WRONG_CODEC, id="no frame"),
        pytest.param(lambda frame: frame[:-1], Refusal.WRONG_CODEC, id="one byte short"),
        pytest.param(lambda frame: frame.replace(b"rand_k:0.1", b"rand_k:0.2"), Refusal.WRONG_CODEC, id="other codec"),
        pytest.param(_not_finite, Refusal.NOT_FINITE, id="not finite"),
        pytest.param(
            lambda frame: bytes(max_payload_bytes(flat_schema(ELEMENTS), load_codec(CODEC)) + 1),
            Refusal.TRUNCATED,
            id="too large",
        ),
    ],
)
async def test_a_hostile_frame_is_refused_and_the_round_goes_on_with_its_quorum(tmp_path, make, refusal):
    built = stage(tmp_path, "abc", rounds=1, quorum=2, compression=CODEC)
    async with built.aggregator() as running:
        sites = [built.site(name, running.address) for name in ("site-a", "site-b")]
        hostile = built.site("site-c", running.address, Hostile, make=make)
        assert await run_all(*sites, hostile) == ["completed"] * 3
        await running.ended()
    assert [error.refusal for error in hostile.refusals] == [refusal]
    outcomes = {row["site"]: row["outcome"] for row in history(built)["rounds"][0]["sites"]}
    assert outcomes == {"site-a": "counted", "site-b": "counted", "site-c": "refused"}


async def test_a_round_may_be_sent_whole_by_a_method_that_compresses(tmp_path):
    built = stage(tmp_path, "a", rounds=1, compression=CODEC)
    schema = flat_schema(ELEMENTS)

    def whole(frame):
        return encode_payload(schema, {"weight": np.full(ELEMENTS, 0.5, np.float32)}, load_codec("identity"), seed=0)

    async with built.aggregator() as running:
        site = built.site("site-a", running.address, Hostile, make=whole)
        assert await run_all(site) == ["completed"]
        await running.ended()
    assert site.refusals == []
    assert (read_model(built.work / "artifacts" / "last.safetensors")[1]["weight"] == 0.5).all()


async def test_a_norm_beyond_the_plans_is_seen_through_compression(tmp_path):
    built = stage(tmp_path, "a", rounds=1, compression=CODEC, max_norm=1.0, max_failures=1)
    async with built.aggregator() as running:
        site = built.site("site-a", running.address, Hostile, make=lambda frame: frame)
        assert await run_all(site) == ["failed"]
        await running.ended()
    assert {error.refusal for error in site.refusals} == {Refusal.NORM}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"downlink": "dgc:0.1"}, "downlink"),
    ],
)
async def test_what_an_aggregator_cannot_run_is_refused_before_anybody_is_asked(tmp_path, plan, message):
    built = stage(tmp_path, "a", **plan)
    with pytest.raises(PlanError, match=message):
        async with built.aggregator() as running:
            await running.ended()


async def test_a_method_may_ask_every_site_in_a_round_though_the_plan_samples(tmp_path):
    """MARINA's full rounds: with p = 1 every round is one."""
    built = stage(tmp_path, "abc", rounds=2, sample=1, algorithm="marina", options={"p": 1.0}, compression=CODEC)
    async with built.aggregator() as running:
        sites = [built.site(f"site-{letter}", running.address) for letter in "abc"]
        assert await run_all(*sites) == ["completed"] * 3
        await running.ended()
    assert all(site.trained == [1, 2] for site in sites)


async def test_a_slot_that_fits_into_a_task_travels_inside_it(tmp_path):
    built = stage(tmp_path, "a", elements=10, rounds=1, algorithm="scaffold")
    async with built.aggregator() as running:
        site = built.site("site-a", running.address)
        await site.connect()
        await site.ready()
        task = await site.next_task()
        assert task.kind == pb.TASK_KIND_TRAIN
        assert {part.digest for part in task.inline} == {payload.digest for payload in task.payloads}
        await site.vanish()
