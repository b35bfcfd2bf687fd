"""From model and updates to the next model: against brute force, in O(tile) memory, the same bytes every time."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.aggregation.combiner import Aggregation
from federation.aggregation.mean import WeightedMean
from federation.aggregation.median import Median
from federation.errors import PlanError
from federation.names import SiteName
from federation.storage.combination import (
    BUFFERS,
    DELTA,
    Combined,
    SiteUpdate,
    combine_model,
    combine_values,
    master_schema,
    needs_master,
    write_master,
)
from federation.storage.safetensors_files import ModelFile, ModelWriter, read_model, write_model
from federation.storage.scoring import Scoring
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec, pack, unpack
from federation.tensors.digest import payload_digest

if TYPE_CHECKING:
    from pathlib import Path

Arrays = dict[str, np.ndarray[Any, Any]]
P, B = TensorRole.PARAMETER, TensorRole.BUFFER


@dataclass(frozen=True)
class InMemory:
    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def pread_into(self, offset: int, view: Any) -> None:
        target = memoryview(view).cast("B")
        target[:] = self.data[offset : offset + target.nbytes]


def spec(name: str, dtype: DType, *shape: int, role: TensorRole = P) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, role=role)


# Names make parameters and buffers of one dtype lie between one another, as those of a batch-norm network do.
NETWORK = TensorSchema.of(
    [
        spec("bn1.bias", DType.FLOAT32, 5),
        spec("bn1.mean", DType.FLOAT32, 5, role=B),
        spec("bn1.weight", DType.FLOAT32, 5),
        spec("bn1.count", DType.INT64, role=B),
        spec("seen", DType.BOOL, 4, role=B),
        spec("conv", DType.FLOAT32, 3, 7),
        spec("double", DType.FLOAT64, 3),
        spec("empty", DType.FLOAT32, 0),
        spec("half.a", DType.FLOAT16, 6),
        spec("half.b", DType.FLOAT16, 2, role=B),
        spec("brain", DType.BFLOAT16, 9),
    ]
)


def random_arrays(schema: TensorSchema, seed: int, scale: float = 1.0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        each.name: np.asarray(
            random.standard_normal(each.shape) * scale if each.dtype.is_float else random.integers(0, 2, each.shape)
        ).astype(each.dtype.numpy)
        for each in schema
    }


def updates_of(schema: TensorSchema, weights: list[float]) -> tuple[list[SiteUpdate], list[Arrays], list[Arrays]]:
    updates, deltas, buffers = [], [], []
    for index, weight in enumerate(weights):
        delta, values = random_arrays(schema.parameters, 10 + index, 0.1), random_arrays(schema.buffers, 50 + index)
        deltas.append(delta)
        buffers.append(values)
        updates.append(
            SiteUpdate(
                site=SiteName(f"site-{index}"),
                weight=weight,
                payloads={
                    DELTA: InMemory(bytes(pack(schema.parameters, delta))),
                    **({BUFFERS: InMemory(bytes(pack(schema.buffers, values)))} if schema.buffers.nbytes else {}),
                },
            )
        )
    return updates, deltas, buffers


def start(folder: Path, schema: TensorSchema, seed: int = 0) -> Arrays:
    """Write the first model and its master."""
    arrays = random_arrays(schema, seed)
    write_model(folder / "x", schema, arrays)
    with ModelFile.open(folder / "x") as model, ModelWriter(folder / "m", master_schema(schema)) as writer:
        write_master(writer, model)
        writer.commit()
    return arrays


def step(
    folder: Path, updates: list[SiteUpdate], tile_elements: int = 4, source: str = "x", target: str = "y"
) -> Combined:
    """Combine into the next model and master: x, m become y, my."""
    master = {"x": "m", "y": "my"}
    with (
        ModelFile.open(folder / source) as model,
        ModelFile.open(folder / master[source]) as old,
        ModelWriter(folder / target, model.schema) as writer,
        ModelWriter(folder / master[target], old.schema) as master_writer,
    ):
        combined = combine_model(
            model=model,
            writer=writer,
            rule=WeightedMean(),
            updates=updates,
            master=old,
            master_writer=master_writer,
            tile_elements=tile_elements,
        )
        writer.commit()
        master_writer.commit()
    return combined


@pytest.mark.parametrize("tile_elements", [1, 4, 1000])
@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0, 0.0, 16.0]], ids=["one site", "four sites"])
def test_next_model_is_what_brute_force_gives(tmp_path: Path, weights: list[float], tile_elements: int) -> None:
    before = start(tmp_path, NETWORK)
    updates, deltas, buffers = updates_of(NETWORK, weights)
    combined = step(tmp_path, updates, tile_elements)
    schema, found = read_model(tmp_path / "y")
    assert schema == NETWORK
    total, squares = math.fsum(weights), 0.0
    for each in NETWORK:
        rows = [(buffers if each.role is B else deltas)[index][each.name] for index in range(len(weights))]
        if not each.dtype.is_float:
            expected = np.maximum.reduce(rows)
        else:
            wide = sum(weight * row.astype(np.float64) for weight, row in zip(weights, rows, strict=True)) / total
            if each.role is P:
                squares += float(np.sum(wide**2))
                wide = wide + before[each.name].astype(np.float64)
                if each.dtype in (DType.FLOAT16, DType.BFLOAT16):
                    wide = wide.astype(np.float32)
            expected = wide.astype(each.dtype.numpy)
        assert found[each.name].dtype == each.dtype.numpy
        np.testing.assert_allclose(found[each.name].astype(np.float64), expected.astype(np.float64), rtol=1e-6)
    assert combined.update_norm == pytest.approx(math.sqrt(squares), rel=1e-12)


def test_digest_is_that_of_the_data_section(tmp_path: Path) -> None:
    start(tmp_path, NETWORK)
    combined = step(tmp_path, updates_of(NETWORK, [1.0, 2.0])[0])
    with ModelFile.open(tmp_path / "y") as model:
        assert combined.digest == payload_digest(model.pread(0, model.nbytes))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_the_bytes_do_not_depend_on_order_of_arrival_or_tiles(tmp_path: Path, random, tile_elements: int) -> None:
    start(tmp_path, NETWORK)
    updates = updates_of(NETWORK, [1.0, 5.0, 2.0])[0]
    expected = step(tmp_path, updates).digest
    random.shuffle(updates)
    assert step(tmp_path, updates, tile_elements).digest == expected


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16], ids=lambda dtype: dtype.value)
def test_changes_too_small_for_half_precision_add_up_in_the_master(tmp_path: Path, dtype: DType) -> None:
    schema = TensorSchema.of([spec("w", dtype, 3)])
    write_model(tmp_path / "x", schema, {"w": np.ones(3, dtype=dtype.numpy)})
    with ModelFile.open(tmp_path / "x") as model, ModelWriter(tmp_path / "m", master_schema(schema)) as writer:
        write_master(writer, model)
        writer.commit()
    tiny = np.full(3, 1e-4, dtype=dtype.numpy)
    update = [SiteUpdate(site=SiteName("a"), weight=1.0, payloads={DELTA: InMemory(tiny.tobytes())})]
    step(tmp_path, update)
    assert (read_model(tmp_path / "y")[1]["w"].astype(float) == 1.0).all()
    for _ in range(50):
        step(tmp_path, update, source="y", target="x")
        step(tmp_path, update, source="x", target="y")
    found = read_model(tmp_path / "y")[1]["w"].astype(float)
    np.testing.assert_allclose(found, 1.0 + 101 * float(tiny[0]), rtol=0.01)


def test_only_half_precision_parameters_need_a_master() -> None:
    assert needs_master(NETWORK)
    assert not needs_master(TensorSchema.of([spec("a", DType.FLOAT32, 3), spec("b", DType.FLOAT16, 3, role=B)]))
    assert {each.name: each.shape for each in master_schema(NETWORK)} == {"float16": (6,), "bfloat16": (9,)}


def test_half_precision_without_its_master_is_refused(tmp_path: Path) -> None:
    start(tmp_path, NETWORK)
    with (
        ModelFile.open(tmp_path / "x") as model,
        ModelWriter(tmp_path / "y", NETWORK) as writer,
        pytest.raises(ValueError, match="need a master"),
    ):
        combine_model(model=model, writer=writer, rule=WeightedMean(), updates=updates_of(NETWORK, [1.0])[0])


@pytest.mark.parametrize(
    ("dtype", "value", "change"),
    [(DType.FLOAT32, 3e38, 3e38), (DType.FLOAT16, 60000.0, 60000.0), (DType.BFLOAT16, 3e38, 3e38)],
    ids=["float32", "float16", "bfloat16"],
)
def test_a_model_that_overflows_is_refused(tmp_path: Path, dtype: DType, value: float, change: float) -> None:
    schema = TensorSchema.of([spec("w", dtype, 3)])
    write_model(tmp_path / "x", schema, {"w": np.full(3, value, dtype=dtype.numpy)})
    with ModelFile.open(tmp_path / "x") as model, ModelWriter(tmp_path / "m", master_schema(schema)) as writer:
        write_master(writer, model)
        writer.commit()
    delta = np.full(3, change, dtype=dtype.numpy)
    with pytest.raises(PlanError, match="diverged"):
        step(tmp_path, [SiteUpdate(site=SiteName("a"), weight=1.0, payloads={DELTA: InMemory(delta.tobytes())})])
    assert not (tmp_path / "y").exists()


def test_an_update_without_its_buffers_is_refused(tmp_path: Path) -> None:
    start(tmp_path, NETWORK)
    update = updates_of(NETWORK, [1.0])[0][0]
    stripped = SiteUpdate(site=update.site, weight=1.0, payloads={DELTA: update.delta})
    with pytest.raises(ValueError, match="lacks the buffers"):
        step(tmp_path, [stripped])


def test_no_update_at_all_is_refused(tmp_path: Path) -> None:
    start(tmp_path, NETWORK)
    with pytest.raises(ValueError, match="no site"):
        step(tmp_path, [])


class Forgetful:
    """A rule that breaks the contract: it skips every other tile."""

    def combine(self, source):
        return (row for index, row in enumerate(WeightedMean().combine(source)) if index % 2)


def test_a_rule_that_skips_tiles_cannot_shift_the_model(tmp_path: Path) -> None:
    schema = TensorSchema.of([spec("w", DType.FLOAT32, 10)])
    write_model(tmp_path / "x", schema, random_arrays(schema, 0))
    with (
        ModelFile.open(tmp_path / "x") as model,
        ModelWriter(tmp_path / "y", schema) as writer,
        pytest.raises(RuntimeError, match="rule yielded"),
    ):
        updates = updates_of(schema, [1.0])[0]
        combine_model(model=model, writer=writer, rule=Forgetful(), updates=updates, tile_elements=2)


def test_optimizer_state_is_combined_as_values(tmp_path: Path) -> None:
    schema = TensorSchema.of([spec("momentum", DType.FLOAT32, 9), spec("step", DType.INT64)])
    rows = [random_arrays(schema, seed) for seed in (1, 2)]
    updates = [
        (SiteName(f"site-{index}"), weight, InMemory(bytes(pack(schema, row))))
        for index, (weight, row) in enumerate(zip((1.0, 3.0), rows, strict=True))
    ]
    with ModelWriter(tmp_path / "o", schema) as writer:
        digest = combine_values(writer=writer, updates=updates[::-1], tile_elements=4)
        assert writer.commit() == digest
    found = read_model(tmp_path / "o")[1]
    np.testing.assert_allclose(found["momentum"], 0.25 * rows[0]["momentum"] + 0.75 * rows[1]["momentum"], rtol=1e-6)
    assert found["step"] == max(rows[0]["step"], rows[1]["step"])


@pytest.mark.parametrize("rule", [WeightedMean(), Median()], ids=lambda rule: rule.name)
def test_model_norm_and_scores_are_the_same_to_the_bit_for_any_number_of_threads(tmp_path: Path, rule: Any) -> None:
    schema = TensorSchema.of([spec("w", DType.FLOAT32, 30_000), spec("z", DType.FLOAT64, 5000)])
    write_model(tmp_path / "x", schema, random_arrays(schema, 0))
    updates = updates_of(schema, [1.0, 2.0, 3.0])[0]
    found = []
    for threads in (1, 2, 4, 16):
        scoring = Scoring(threads=threads)
        with ModelFile.open(tmp_path / "x") as model, ModelWriter(tmp_path / "y", schema) as writer:
            combined = combine_model(
                model=model,
                writer=writer,
                rule=Aggregation(rule=rule).for_round(Random, threads=threads),
                updates=updates,
                scoring=scoring,
                tile_elements=2500,
            )
        found.append((combined.digest, combined.update_norm, dict(combined.scores)))
    assert len(found[0][2]) == 3
    assert found == [found[0]] * 4


@pytest.mark.parametrize("sites", [2, 8])
def test_memory_is_a_few_tiles_whatever_model_and_sites(tmp_path: Path, sites: int) -> None:
    elements = 8_000_000  # 32 MB, and 64 in float64
    schema = TensorSchema.of([spec("w", DType.FLOAT32, elements)])
    write_model(tmp_path / "x", schema, {"w": np.ones(elements, dtype=np.float32)})
    path = tmp_path / "delta"
    write_model(path, schema, {"w": np.full(elements, 0.5, dtype=np.float32)})
    with (
        ModelFile.open(path) as delta,
        ModelFile.open(tmp_path / "x") as model,
        ModelWriter(tmp_path / "y", schema) as writer,
    ):
        updates = [SiteUpdate(site=SiteName(f"site-{i}"), weight=1.0, payloads={DELTA: delta}) for i in range(sites)]
        rule = Aggregation(rule=WeightedMean()).for_round(Random, threads=2)
        tracemalloc.start()
        combine_model(model=model, writer=writer, rule=rule, updates=updates)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        writer.commit()
    assert peak < 24 << 20
    with ModelFile.open(tmp_path / "y") as result:
        assert unpack(schema, result.pread(0, result.nbytes))["w"][-1] == 1.5
