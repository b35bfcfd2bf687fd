"""Every rule and every pre-aggregation over real TLS, one site hostile, and in simulation: the same bits.

The aggregator is the real one, sites are scripted: what a rule decides lies between the updates and the model, and
`end_to_end/test_rules.py` has some of them with every process real. ``west`` learns as everybody does and hands over
ten times the way back. Each rule has the fewest sites of which it stands one hostile. What a rule makes of it must be
near to what the honest sites learn without ``west``, where the mean without defence is not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation import Experiment, Plan, simulate
from federation.aggregation.registry import PRE_AGGREGATIONS, RULES
from federation.data import ArrayShard
from federation.storage.safetensors_files import read_model
from federation.tensors import pack
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.honest_sites import HonestSite
from federation.wire.payloads import DELTA

from .stages import run_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Array = np.ndarray[Any, Any]

ELEMENTS, START = 5, 0.125
HOSTILE = "west"
SITES = {
    3: ("north", "south", HOSTILE),
    5: ("centre", "east", "north", "south", HOSTILE),
    7: ("centre", "coast", "east", "hills", "north", "south", HOSTILE),
}
EXAMPLES = {"north": 24, "south": 40, "west": 16, "east": 32, "centre": 28, "coast": 36, "hills": 20}
SHARED = np.array([1.0, -2.0, 0.5, 3.0, 0.25])
TARGETS = {name: SHARED + np.random.default_rng(seed).normal(0.0, 0.1, ELEMENTS) for seed, name in enumerate(EXAMPLES)}
"""What the data of each site say the model should be."""
TRUST = {"rule_options": {"trusted": "north"}}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "mean": (3, {"pre_aggregation": ("arc",), "weighting": "uniform"}),
    "median": (3, {"pre_aggregation": ("clipping:2.0",)}),
    "trimmed_mean": (3, {"pre_aggregation": ("nnm",)}),
    "meamed": (5, {"pre_aggregation": ("bucketing:2",)}),
    "krum": (5, {}),
    "multi_krum": (5, {}),
    "bulyan": (7, {}),
    "geometric_median": (3, {}),
    "centered_clipping": (3, {}),
    "mda": (3, {}),
    "monna": (3, TRUST),
    "smea": (3, {"sample": 3}),
    "caf": (3, {}),
    "fltrust": (3, TRUST),
}
"""How many sites, and what else the plan says."""
NEAR = {**dict.fromkeys(CASES, 0.5), "mean": 0.75, "centered_clipping": 0.75}
"""Of the way that the honest sites go, how much may be left: less than half, and more where updates are only clipped to
a length, for ``west`` then turns some of it back."""


def plan_of(case: str, **changes: Any) -> Plan:
    count, options = CASES[case]
    answers = {"sites": count, "minimum_sites": count, "quorum": count}
    return Plan(**{"rule": case, "byzantine": 1, "rounds": 2, "evaluate_every": 0, **answers, **options, **changes})


def trained(site: str, model: Array) -> Array:
    """Return where training leads: halfway to the target, and ten times as far back for the hostile site."""
    way = (TARGETS[site] - model.astype(np.float64)) / 2
    return (model + (-10 * way if site == HOSTILE else way)).astype(np.float32)


class Site(HonestSite):
    """A site over the wire."""

    def train(self, task: Any, model: dict[str, Array]) -> dict[str, bytes]:
        schema = self.meeting.spec.schema_.parameters
        change = trained(self.name, model["weight"]) - model["weight"]
        return {str(DELTA): bytes(pack(schema, {"weight": change}))}


class Task:
    """The same site, simulated."""

    def train(self, model: dict[str, Array], data: Any, round: Any) -> dict[str, float]:
        model["weight"][...] = trained(round.site, model["weight"])
        for _ in data.batches(1000, round.rng("order")):
            pass
        return {}

    def evaluate(self, model: dict[str, Array], data: Any) -> dict[str, float]:
        return {"loss": 0.0}


def simulated(plan: Plan, sites: Sequence[str]) -> Any:
    experiment = Experiment(
        name="rules", model={"weight": np.full(ELEMENTS, START, np.float32)}, task=Task(), shard="none", plan=plan
    )
    pairs = {name: (np.zeros((EXAMPLES[name], 1)), np.zeros(EXAMPLES[name])) for name in sites}
    return simulate(
        experiment, sites=sites, data={name: ArrayShard(train=pair, validation=pair) for name, pair in pairs.items()}
    )


def left(model: Array, count: int) -> float:
    """Return how far from where the honest arrive a model is, in lengths of their way: 1 before the first round."""
    honest = [name for name in SITES[count] if name != HOSTILE]
    end = simulated(undefended(len(honest)), honest).arrays["weight"].astype(np.float64)
    return float(np.linalg.norm(model - end) / np.linalg.norm(START - end))


def undefended(count: int) -> Plan:
    return Plan(rounds=2, evaluate_every=0, sites=count, minimum_sites=count, weighting="uniform")


@pytest.mark.parametrize("case", CASES)
async def test_the_model_goes_the_honest_way_and_is_that_of_a_simulation_to_the_bit(tmp_path: Path, case: str) -> None:
    count, _ = CASES[case]
    built = Stage(tmp_path, plan_of(case), SITES[count], schema=flat_schema(ELEMENTS), value=START)
    async with built.aggregator() as running:
        sites = [built.site(name, running.address, Site, train_examples=EXAMPLES[name]) for name in SITES[count]]
        assert await run_all(*sites) == ["completed"] * count
        assert (await running.ended()).outcome == "completed"
    rounds = json.loads((built.work / "artifacts" / "history.json").read_text())["rounds"]
    assert [[(row["site"], row["outcome"]) for row in entry["sites"]] for entry in rounds] == [
        [(site, "counted") for site in SITES[count]]
    ] * 2
    model = read_model(built.work / "artifacts" / "last.safetensors")[1]["weight"]
    assert left(model, count) < NEAR[case]

    same = simulated(plan_of(case), SITES[count])
    assert [entry["model_digest"] for entry in rounds] == [record.model_digest for record in same.records]
    assert model.tobytes() == same.arrays["weight"].tobytes()


@pytest.mark.parametrize("count", SITES)
def test_the_mean_without_defence_goes_the_other_way(count: int) -> None:
    ruined = simulated(undefended(count), SITES[count]).arrays["weight"]
    assert left(ruined, count) > 1.5, "the attack would ruin what nobody defends"


def test_every_rule_and_pre_aggregation_is_run_here() -> None:
    assert set(CASES) == set(RULES)
    used = {choice.partition(":")[0] for _, plan in CASES.values() for choice in plan.get("pre_aggregation", ())}
    assert used == set(PRE_AGGREGATIONS)
