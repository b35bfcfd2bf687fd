"""One server step of a method: FedAvg as ever to the bit, others against brute force over whole vectors."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.aggregation.mean import WeightedMean
from federation.aggregation.registry import load_aggregation
from federation.aggregation.scores import KRUM, KRUM_SITES
from federation.algorithms.diana import Diana
from federation.algorithms.fedavg import FedAvg
from federation.algorithms.fedopt import FedAdam
from federation.algorithms.scaffold import Scaffold
from federation.algorithms.server import ServerRound, SiteFacts
from federation.compression.frame import decode_payload, encode_payload
from federation.compression.registry import load_codec
from federation.errors import PlanError
from federation.names import PayloadName, RoundNumber, SiteName
from federation.plan import ExperimentSpec, Plan, Quarantine, TensorRow
from federation.rounds.quarantine import Suspicion, judge
from federation.storage import small_models
from federation.storage.combination import (
    BUFFERS,
    DELTA,
    Combined,
    SiteUpdate,
    combine_model,
    master_schema,
    write_master,
)
from federation.storage.encoded import RoleOf
from federation.storage.memory import MemoryModel, MemoryWriter
from federation.storage.method_combination import RoundSinks, RoundSources, combine_round, read_scalars, write_slot
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec, pack

if TYPE_CHECKING:
    from federation.algorithms.algorithm import Algorithm

Arrays = dict[str, np.ndarray[Any, Any]]
NETWORK = TensorSchema.of(
    [
        TensorSpec(name="a.bias", dtype=DType.FLOAT32, shape=(7,)),
        TensorSpec(name="a.mean", dtype=DType.FLOAT32, shape=(5,), role=TensorRole.BUFFER),
        TensorSpec(name="b.weight", dtype=DType.FLOAT32, shape=(300, 250)),
        TensorSpec(name="double", dtype=DType.FLOAT64, shape=(9,)),
        TensorSpec(name="seen", dtype=DType.INT64, shape=(), role=TensorRole.BUFFER),
    ]
)
EXAMPLES = (30, 10, 60)


def spec_of(algorithm: Algorithm, schema: TensorSchema = NETWORK, **plan: Any) -> ExperimentSpec:
    made = Plan(algorithm=algorithm.name, options=algorithm.options(), **plan)
    uplink, downlink = algorithm.payload_rows(made)
    return ExperimentSpec(
        name="test",
        shard="digits",
        plan=made,
        metrics=("loss",),
        tensors=tuple(TensorRow(name=row.name, dtype=row.dtype, shape=row.shape, role=row.role) for row in schema),
        uplink=uplink,
        downlink=downlink,
    )


def random_arrays(schema: TensorSchema, seed: int, scale: float = 1.0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        each.name: np.asarray(
            random.standard_normal(each.shape) * scale if each.dtype.is_float else random.integers(0, 9, each.shape)
        ).astype(each.dtype.numpy)
        for each in schema
    }


def updates_of(spec: ExperimentSpec) -> tuple[list[SiteUpdate], dict[str, list[Arrays]]]:
    """Three sites' updates, compressed as the spec says, and what they stand for."""
    updates, found = [], {planned.name: [] for planned in spec.uploads()}
    for index in range(len(EXAMPLES)):
        payloads = {}
        for number, planned in enumerate(spec.uploads()):
            arrays = random_arrays(planned.schema, 100 * index + number, 0.1)
            data = bytes(pack(planned.schema, arrays))
            if planned.codec != "identity":
                data = encode_payload(planned.schema, arrays, load_codec(planned.codec), seed=index)
                arrays = decode_payload(data, planned.schema)
            payloads[planned.name] = Bytes(data)
            found[planned.name].append(arrays)
        updates.append(SiteUpdate(site=SiteName(f"site-{index}"), payloads=payloads))
    return updates, found


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.nbytes = data, len(data)

    def pread_into(self, offset: int, view: Any) -> None:
        target = memoryview(view).cast("B")
        target[:] = self.data[offset : offset + target.nbytes]


def round_of(spec: ExperimentSpec, *, rate: float = 1.0, total: int = 3) -> ServerRound:
    facts = tuple(
        SiteFacts(site=SiteName(f"site-{index}"), examples=count, steps=4, scalars={})
        for index, count in enumerate(EXAMPLES)
    )
    return ServerRound(number=1, plan=spec.plan, sites=facts, total=total, learning_rate=rate)


def slots_of(algorithm: Algorithm, schema: TensorSchema) -> dict[str, MemoryModel]:
    slots = {}
    for index, name in enumerate(algorithm.slots):
        slots[name] = MemoryModel.of(schema, {k: abs(v) for k, v in random_arrays(schema, 900 + index).items()})
    return slots


def combine(
    algorithm: Algorithm,
    spec: ExperimentSpec,
    updates: list[SiteUpdate],
    *,
    round: ServerRound | None = None,
    master_writer: MemoryWriter | None = None,
    **sources: Any,
) -> tuple[Combined, Arrays, dict[str, Arrays]]:
    model = MemoryModel.of(spec.schema_.federated, random_arrays(spec.schema_.federated, 0))
    slots = slots_of(algorithm, spec.schema_.parameters.widened)
    writer = MemoryWriter(spec.schema_.federated)
    slot_writers = {name: MemoryWriter(spec.schema_.parameters.widened) for name in slots}
    combined = combine_round(
        algorithm=algorithm,
        spec=spec,
        aggregation=load_aggregation(spec.plan),
        round=round or round_of(spec),
        updates=updates,
        sources=RoundSources(**{"model": model, "slots": slots, "total": 3, **sources}),
        sinks=RoundSinks(model=writer, slots=slot_writers, master=master_writer),
    )
    after = {name: writer.reader().arrays() for name, writer in slot_writers.items()}
    return combined, writer.reader().arrays(), after


def wide(rows: list[Arrays], name: str, weights: Any) -> np.ndarray[Any, Any]:
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    return sum(share * row[name].astype(np.float64) for share, row in zip(shares, rows, strict=True))


def test_fedavg_is_what_it_was_to_the_bit() -> None:
    spec = spec_of(FedAvg())
    updates = updates_of(spec)[0]
    combined, _, _ = combine(FedAvg(), spec, updates[::-1])
    weighed = [
        SiteUpdate(site=row.site, payloads=row.payloads, weight=float(count))
        for row, count in zip(updates, EXAMPLES, strict=True)
    ]
    model = MemoryModel.of(NETWORK, random_arrays(NETWORK, 0))
    writer = MemoryWriter(NETWORK)
    plain = combine_model(model=model, writer=writer, rule=WeightedMean(), updates=weighed)
    assert combined.scores and replace(combined, report=None, scores={}) == plain
    assert combined.weights == tuple(map(float, EXAMPLES))


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64])
def test_a_small_model_is_combined_at_once_to_the_bits_of_the_longer_way(
    dtype: DType, weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = TensorSchema.of(
        [TensorSpec(name="w", dtype=dtype, shape=(130, 70)), TensorSpec(name="b", dtype=dtype, shape=(7,))]
    )
    spec = spec_of(FedAvg(), small, weighting=weighting)
    updates = updates_of(spec)[0]
    assert small_models.is_small(small, load_aggregation(spec.plan), len(updates))
    at_once = combine(FedAvg(), spec, updates[::-1])[0]
    monkeypatch.setattr(small_models, "is_small", lambda *_: False)
    assert combine(FedAvg(), spec, updates)[0] == at_once


@pytest.mark.parametrize("change", [{"rule": "median", "byzantine": 1}, {"pre_aggregation": ("nnm",), "byzantine": 1}])
def test_only_a_plain_mean_of_plain_parameters_is_small(change: dict[str, Any]) -> None:
    plain = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(9,))])
    assert small_models.is_small(plain, load_aggregation(Plan()), 3)
    assert not small_models.is_small(plain, load_aggregation(Plan(**change)), 3)
    assert not small_models.is_small(plain, load_aggregation(Plan()), 1 << 20)
    assert not small_models.is_small(NETWORK, load_aggregation(Plan()), 3)
    half = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT16, shape=(9,))])
    assert not small_models.is_small(half, load_aggregation(Plan()), 3)


def test_fedavg_through_the_steps_of_a_method_gives_the_same_model() -> None:
    """FedAdam's state aside, a server half that only adds the mean is FedAvg: the other way round the loop."""
    from federation.algorithms.server import ServerHalf

    class Same(ServerHalf):
        pass

    class SameFedAvg(FedAvg):
        def server(self) -> ServerHalf:
            return Same()

    spec = spec_of(FedAvg())
    updates = updates_of(spec)[0]
    assert combine(SameFedAvg(), spec, updates)[0].digest == combine(FedAvg(), spec, updates)[0].digest


@pytest.mark.parametrize("codec", ["identity", "rand_k:0.1"])
def test_scaffold_moves_model_and_control_as_brute_force_does(codec: str) -> None:
    algorithm = Scaffold()
    spec = spec_of(algorithm, compression=codec)
    updates, rows = updates_of(spec)
    round_ = round_of(spec, rate=0.5, total=12)
    combined, model, slots = combine(algorithm, spec, updates, round=round_, total=12)
    before = random_arrays(NETWORK, 0)
    controls = slots_of(algorithm, NETWORK.parameters)["control"].arrays()
    omega = load_codec(codec).omega(75007)
    for each in NETWORK.parameters:
        expected = before[each.name] + 0.5 * wide(rows["delta"], each.name, (1, 1, 1))
        np.testing.assert_allclose(model[each.name], expected, rtol=1e-6, atol=1e-6)
        mean = wide(rows["control"], each.name, (1, 1, 1))
        expected = controls[each.name].astype(np.float64) + 3 / 12 / (1 + omega) * mean
        # The float64 segment has an ω of its own; one damping serves both, that of the larger.
        np.testing.assert_allclose(slots["control"][each.name], expected, rtol=1e-2 if codec != "identity" else 1e-6)
    assert set(combined.slot_digests) == {"control"}
    np.testing.assert_array_equal(model["seen"], max(row["seen"] for row in rows["buffers"]))


MIXED = TensorSchema.of(
    [
        TensorSpec(name="a", dtype=DType.BFLOAT16, shape=(40, 30)),
        TensorSpec(name="b", dtype=DType.FLOAT32, shape=(300, 250)),
        TensorSpec(name="b.mean", dtype=DType.FLOAT32, shape=(5,), role=TensorRole.BUFFER),
        TensorSpec(name="c", dtype=DType.FLOAT16, shape=(70_000,)),
        TensorSpec(name="d", dtype=DType.FLOAT64, shape=(9,)),
        TensorSpec(name="e", dtype=DType.FLOAT32, shape=()),
    ]
)
"""Widened, a and c lie before and between the float32 tensors; as they are, behind them."""


@pytest.mark.parametrize("codec", ["identity", "rand_k:0.1"])
@pytest.mark.parametrize("algorithm", [Scaffold(), FedAdam()], ids=["scaffold", "fedadam"])
def test_what_a_method_adds_up_is_float32_where_parameters_are_half_precision(algorithm: Algorithm, codec: str) -> None:
    spec = spec_of(algorithm, MIXED, compression=codec)
    updates, rows = updates_of(spec)
    model = MemoryModel.of(MIXED, random_arrays(MIXED, 0))
    master, master_writer = (MemoryWriter(master_schema(MIXED)) for _ in range(2))
    write_master(master, model)
    _, after, slots = combine(
        algorithm, spec, updates, round=round_of(spec, rate=0.1), master=master.reader(), master_writer=master_writer
    )
    old = {name: slot.arrays() for name, slot in slots_of(algorithm, MIXED.parameters.widened).items()}
    for each in MIXED.parameters:
        if algorithm.name == "scaffold":
            name, share = "control", 1 / (1 + load_codec(codec).omega(146_201))
            change = share * wide(rows["control"], each.name, (1, 1, 1))
            expected = old[name][each.name] + change
        else:
            name, mean = "variance", wide(rows["delta"], each.name, EXAMPLES)
            expected = 0.99 * old[name][each.name].astype(np.float64) + 0.01 * mean**2
        got = slots[name][each.name]
        assert got.dtype == each.dtype.widened.numpy
        assert after[each.name].dtype == each.dtype.numpy
        # ω differs by the rounding of K; float16 would be wrong by 1e-3, bfloat16 by 1e-2 of each.
        np.testing.assert_allclose(got, expected, rtol=1e-4 if codec != "identity" else 1e-6, atol=1e-7)


def test_a_slot_that_is_a_mean_over_all_sites_is_rescaled_when_a_site_joins() -> None:
    algorithm = Scaffold()
    spec = spec_of(algorithm)
    updates, rows = updates_of(spec)
    slots = combine(algorithm, spec, updates, round=round_of(spec, total=4), total=3)[2]
    old = slots_of(algorithm, NETWORK.parameters)["control"].arrays()["a.bias"].astype(np.float64)
    expected = old * 3 / 4 + 3 / 4 * wide(rows["control"], "a.bias", (1, 1, 1))
    np.testing.assert_allclose(slots["control"]["a.bias"], expected, rtol=1e-6)


def test_fedadam_takes_one_step_of_its_formula() -> None:
    algorithm = FedAdam()
    spec = spec_of(algorithm)
    updates, rows = updates_of(spec)
    _, model, slots = combine(algorithm, spec, updates, round=round_of(spec, rate=0.1))
    before = random_arrays(NETWORK, 0)["b.weight"].astype(np.float64)
    old = {
        name: slot.arrays()["b.weight"].astype(np.float64)
        for name, slot in slots_of(algorithm, NETWORK.parameters).items()
    }
    options = algorithm.options()
    beta1, beta2, tau = float(options["beta1"]), float(options["beta2"]), float(options["tau"])
    mean = wide(rows["delta"], "b.weight", EXAMPLES)
    m = beta1 * old["momentum"] + (1 - beta1) * mean
    v = beta2 * old["variance"] + (1 - beta2) * mean**2
    np.testing.assert_allclose(slots["momentum"]["b.weight"], m, rtol=1e-5)
    np.testing.assert_allclose(slots["variance"]["b.weight"], v, rtol=1e-5)
    np.testing.assert_allclose(model["b.weight"], before + 0.1 * m / (np.sqrt(v) + tau), rtol=1e-5)


@pytest.mark.parametrize("algorithm", [FedAvg(), Diana()], ids=["fedavg", "diana"])
def test_compressed_updates_combine_as_what_they_decode_to(algorithm: Algorithm) -> None:
    spec = spec_of(algorithm, compression="rand_k:0.1")
    updates, rows = updates_of(spec)
    plain = [
        SiteUpdate(
            site=update.site,
            payloads={
                planned.name: Bytes(
                    encode_payload(planned.schema, rows[planned.name][index], load_codec("identity"), seed=0)
                )
                if planned.codec != "identity"
                else update.payloads[planned.name]
                for planned in spec.uploads()
            },
        )
        for index, update in enumerate(updates)
    ]
    first, second = combine(algorithm, spec, updates)[0], combine(algorithm, spec, plain)[0]
    assert first == second


def test_a_state_that_overflows_is_refused_by_name() -> None:
    algorithm = FedAdam()
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(3,))])
    spec = spec_of(algorithm, schema)
    huge = Bytes(np.full(3, 3e38, dtype=np.float32).tobytes())
    updates = [SiteUpdate(site=SiteName(f"site-{index}"), payloads={DELTA: huge}) for index in range(3)]
    with pytest.raises(PlanError, match=r"state .(momentum|variance). of the method does not fit float32"):
        combine(algorithm, spec, updates)


def test_an_update_without_a_payload_of_the_method_is_refused() -> None:
    spec = spec_of(Scaffold())
    updates = [
        SiteUpdate(site=row.site, payloads={DELTA: row.payloads[DELTA], BUFFERS: row.payloads[BUFFERS]})
        for row in updates_of(spec)[0]
    ]
    with pytest.raises(ValueError, match="lacks payload 'control'"):
        combine(Scaffold(), spec, updates)


def test_a_round_of_other_sites_is_refused() -> None:
    spec = spec_of(FedAvg())
    with pytest.raises(ValueError, match="not those of the round's sites"):
        combine(FedAvg(), spec, updates_of(spec)[0][:2])


def test_scalars_are_read_by_name() -> None:
    row = [TensorSpec(name=name, dtype=DType.FLOAT64, shape=()) for name in ("loss", "a")]
    schema = TensorSchema.of(row)
    data = pack(schema, {"loss": np.asarray(2.5), "a": np.asarray(-1.0)})
    assert read_scalars(schema, Bytes(bytes(data))) == {"a": -1.0, "loss": 2.5}


def test_a_first_slot_has_its_value_everywhere() -> None:
    writer = MemoryWriter(NETWORK.parameters)
    write_slot(writer, 0.25)
    assert all((array == 0.25).all() for array in writer.reader().arrays().values())


def test_parameters_of_a_model_lie_as_those_of_an_update() -> None:
    arrays = random_arrays(NETWORK, 3)
    parameters = RoleOf(MemoryModel.of(NETWORK, arrays), TensorRole.PARAMETER)
    data = bytearray(parameters.nbytes)
    for offset in range(0, parameters.nbytes, 1000):
        parameters.pread_into(offset, memoryview(data)[offset : offset + 1000])
    assert data == pack(NETWORK.parameters, arrays)


@pytest.mark.parametrize("policy", [None, "distance", "krum"])
def test_a_quarantine_by_krum_holds_whom_it_should_however_many_sites_there_are(policy: str | None) -> None:
    count = KRUM_SITES + 2
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(20,))])
    rules = Quarantine.model_validate({"score": policy, "threshold": 3.0, "rounds": 1}) if policy else None
    spec = spec_of(FedAvg(), schema, rule="median", quarantine=rules)
    rows = np.random.default_rng(0).standard_normal((count, 20)).astype(np.float32)
    rows[7] *= 50.0
    sites = [SiteName(f"site-{index:02d}") for index in range(count)]
    facts = tuple(SiteFacts(site=site, examples=1, steps=1, scalars={}) for site in sites)
    combined = combine_round(
        algorithm=FedAvg(),
        spec=spec,
        aggregation=load_aggregation(spec.plan),
        round=ServerRound(number=1, plan=spec.plan, sites=facts, total=count, learning_rate=1.0),
        updates=[
            SiteUpdate(site=site, payloads={PayloadName("delta"): Bytes(row.tobytes())})
            for site, row in zip(sites, rows, strict=True)
        ],
        sources=RoundSources(model=MemoryModel.of(schema, {"w": np.zeros(20, np.float32)})),
        sinks=RoundSinks(model=MemoryWriter(schema)),
    )
    assert all((KRUM in scores) is (policy == "krum") for scores in combined.scores.values())
    suspicion = judge(rules, Suspicion(), RoundNumber(1), combined.scores)
    assert [row.site for row in suspicion.held] == (["site-07"] if policy else [])


def test_memory_of_compressed_updates_is_a_block_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})  # each thread has tiles of its own
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(8_000_000,))])  # 32 MB
    spec = spec_of(FedAvg(), schema, compression="rand_k:0.01")
    vector = {"w": np.random.default_rng(0).standard_normal(8_000_000).astype(np.float32)}
    frame = Bytes(encode_payload(schema, vector, load_codec("rand_k:0.01"), seed=1))
    updates = [SiteUpdate(site=SiteName(f"site-{index}"), payloads={PayloadName("delta"): frame}) for index in range(3)]
    model, writer = MemoryModel.of(schema, vector), MemoryWriter(schema)
    tracemalloc.start()
    combine_round(
        algorithm=FedAvg(),
        spec=spec,
        aggregation=load_aggregation(spec.plan),
        round=round_of(spec),
        updates=updates,
        sources=RoundSources(model=model),
        sinks=RoundSinks(model=writer),
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20
