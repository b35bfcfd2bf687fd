"""The examples learn what their READMEs say. What is averaged here is what trainers would send."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.data import ArrayShard, JoinedShard, LocalData
from federation.names import SiteName
from federation.tensors import pack, unpack
from federation.training.importing import load_experiment
from federation.training.loop import LocalWork

pytest.importorskip("sklearn")
from federation.data.samples import HOSPITALS, BreastCancerShard, DigitsShard, breast_cancer_test

if TYPE_CHECKING:
    from federation.data import Shard
    from federation.tensors.buffers import Array

ROOT = Path(__file__).parents[2]
HOSPITALS_EXPERIMENT = "federation/client/hospitals"


class Simulation:
    """Weighted FedAvg over sites, without network or processes."""

    def __init__(self, folder: Path, example: str, shards: dict[str, Shard]) -> None:
        self.experiment = load_experiment(ROOT / example)
        self.spec, self.arrays = self.experiment.build()
        self.schema = self.spec.schema_
        self.works: dict[str, LocalWork] = {}
        for name, shard in shards.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "base").write_bytes(pack(self.schema.local, self.arrays))
            self.works[name] = LocalWork(
                experiment=self.experiment,
                spec=self.spec,
                site=SiteName(name),
                data=LocalData(shard),
                workspace=folder / name,
                base=folder / name / "base",
            )
        self.folder = folder

    def run(self, rounds: int | None = None) -> Simulation:
        for number in range(1, (rounds or self.spec.plan.rounds) + 1):
            (self.folder / "model").write_bytes(pack(self.schema.federated, self.arrays))
            changes: dict[str, Array] = {name: np.zeros(()) for name in self.arrays}
            total = 0
            for work in self.works.values():
                done = work.train(
                    number=number,
                    model=self.folder / "model",
                    delta=self.folder / "delta",
                    buffers=self.folder / "buffers",
                )
                work.keep(number, counted=True)
                for name, value in unpack(self.schema.parameters, (self.folder / "delta").read_bytes()).items():
                    changes[name] = changes[name] + value.astype(np.float64) * done.examples
                if self.schema.buffers:
                    for name, value in unpack(self.schema.buffers, (self.folder / "buffers").read_bytes()).items():
                        old = self.arrays[name]
                        changes[name] = changes[name] + (value.astype(np.float64) - old) * done.examples
                total += done.examples
            self.arrays = {
                name: (value + changes[name] / total).astype(value.dtype) for name, value in self.arrays.items()
            }
        return self

    def evaluate(self, number: int | None = None) -> dict[str, float]:
        """Return metrics, averaged over the sites' validation examples."""
        (self.folder / "model").write_bytes(pack(self.schema.federated, self.arrays))
        done = [
            work.evaluate(number=number or self.spec.plan.rounds, model=self.folder / "model")
            for work in self.works.values()
        ]
        total = sum(one.examples for one in done)
        return {name: sum(one.metrics[name] * one.examples for one in done) / total for name in done[0].metrics}

    def accuracy_on(self, patients: tuple[Array, Array]) -> float:
        adapter = self.experiment.make_model(0)
        for name, target in adapter.arrays().items():
            target[...] = self.arrays[name]
        data = LocalData(ArrayShard(train=patients, validation=patients))
        return float(self.experiment.task.evaluate(adapter.model, data)["accuracy"])


@pytest.mark.needs_torch
def test_the_federation_beats_every_hospital_alone_and_comes_near_the_pooled_data(tmp_path: Path) -> None:
    shards: dict[str, Shard] = {name: BreastCancerShard(name) for name in HOSPITALS}
    test = breast_cancer_test()

    def accuracy(name: str, of: dict[str, Shard]) -> float:
        return Simulation(tmp_path / name, HOSPITALS_EXPERIMENT, of).run().accuracy_on(test)

    alone = {name: accuracy(f"alone-{name}", {name: shard}) for name, shard in shards.items()}
    federated = accuracy("federated", shards)
    pooled = accuracy("pooled", {"pooled": JoinedShard(list(shards.values()))})
    assert federated > max(alone.values()) + 0.02
    assert federated > pooled - 0.05


def test_the_numpy_example_learns_without_torch(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, "examples/numpy_logistic", {name: BreastCancerShard(name) for name in HOSPITALS})
    before = simulation.accuracy_on(breast_cancer_test())
    assert simulation.run().accuracy_on(breast_cancer_test()) > max(0.9, before)


@pytest.mark.needs_torch
def test_the_digits_example_learns_with_batch_norm_over_five_sites(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, "examples/digits_cnn", {f"site-{part}": DigitsShard(part) for part in range(5)})
    assert simulation.run(6).evaluate(6)["accuracy"] > 0.85
    assert simulation.arrays["1.num_batches_tracked"] > 0


@pytest.mark.needs_torch
def test_the_partial_example_leaves_backbone_and_initial_head_as_they_were_and_learns(tmp_path: Path) -> None:
    simulation = Simulation(
        tmp_path, "examples/partial_model", {f"s{part}": DigitsShard(part, parts=3) for part in range(3)}
    )
    initial = dict(simulation.arrays)
    assert simulation.run(4).evaluate(4)["accuracy"] > 0.8
    changed = {name for name, value in simulation.arrays.items() if not np.array_equal(value, initial[name])}
    assert changed == {"neck.0.weight", "neck.0.bias"}


@pytest.mark.needs_torch
def test_the_robust_example_survives_a_site_that_sends_nan() -> None:
    from federation.simulation import simulate

    changes = {"rounds": 2, "evaluate_every": 2}
    result = simulate(ROOT / "examples/robust", changes=changes, attack="nan", hostile=1)
    assert result.outcome == "completed", result.reason
    assert [len([row for row in record.sites if row.outcome.value == "refused"]) for record in result.records] == [1, 1]


@pytest.mark.needs_torch
def test_the_robust_example_stands_two_liars_that_ruin_the_mean() -> None:
    from federation.simulation import simulate

    undefended = {"rule": "mean", "byzantine": 0, "pre_aggregation": (), "rounds": 12, "evaluate_every": 12}
    common = {"partition": "dirichlet:0.3", "attack": "sign_flip:4", "hostile": 2}
    stood = simulate(ROOT / "examples/robust", changes={"rounds": 12, "evaluate_every": 12}, **common)
    fallen = simulate(ROOT / "examples/robust", changes=undefended, **common)
    assert stood.records[-1].metrics["accuracy"] > 0.7
    assert fallen.records[-1].metrics["accuracy"] < 0.5
