"""Every rule and every pre-aggregation in an aggregator process, behind real TLS, with two hostile sites of eleven."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from federation.aggregation.registry import PRE_AGGREGATIONS, RULES
from federation.attacks import load_attack
from federation.plan import Plan
from federation.storage.checkpoints import read_model
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.attacks import Collusion, HostileSite

HONEST = {f"site-{letter}": 0.9 + 0.025 * index for index, letter in enumerate("abcdefghi")}
HOSTILE = {"site-x": 0.9, "site-y": 1.1}
TRUST = {"trusted": "site-c"}
CASES: dict[str, dict[str, Any]] = {
    "mean": {"pre_aggregation": ("clipping:8.0",), "weighting": "uniform"},
    "median": {"pre_aggregation": ("bucketing:2",)},
    "trimmed_mean": {"pre_aggregation": ("nnm",)},
    "meamed": {"pre_aggregation": ("arc", "nnm")},
    "krum": {},
    "multi_krum": {"pre_aggregation": ("arc",)},
    "bulyan": {},
    "geometric_median": {"pre_aggregation": ("bucketing:2",)},
    "centered_clipping": {"pre_aggregation": ("clipping:8.0",)},
    "mda": {},
    "monna": {"rule_options": TRUST},
    "smea": {"sample": 11},
    "caf": {"pre_aggregation": ("nnm",)},
    "fltrust": {"rule_options": TRUST},
}


async def run(tmp_path, **plan):
    plan = {"rounds": 2, "evaluate_every": 0, "sites": 11, "quorum": 11, "byzantine": 2, **plan}
    built = Stage(tmp_path, Plan(**plan), [*HONEST, *HOSTILE], schema=flat_schema(200))
    collusion = Collusion(load_attack("sign_flip:50"), HOSTILE, total=11)
    async with built.process() as running, asyncio.timeout(60), asyncio.TaskGroup() as group:
        sites = [built.site(name, running.address, target=target) for name, target in HONEST.items()]
        hostile = [
            built.site(name, running.address, HostileSite, target=target, collusion=collusion)
            for name, target in HOSTILE.items()
        ]
        outcomes = await asyncio.gather(*[group.create_task(site.run()) for site in (*sites, *hostile)])
        for site in (*sites, *hostile):
            await site.vanish()
        await running.ended()
    history = json.loads((built.work / "artifacts" / "history.json").read_text())
    return outcomes, read_model(built.work / "artifacts" / "last.safetensors")[1]["weight"], history["rounds"]


@pytest.mark.parametrize("rule", CASES)
async def test_the_model_goes_where_the_honest_sites_want_it(tmp_path, rule):
    outcomes, weight, rounds = await run(tmp_path, rule=rule, **CASES[rule])
    assert outcomes == ["completed"] * 11
    assert all(site["outcome"] == "counted" for row in rounds for site in row["sites"])
    # Half-way to 1 twice: 0.75. The hostile sites' own -25 would leave a mean of about -4 after the first round; rules
    # that clip to a length let them turn some of it back.
    assert weight.min() > (0.3 if rule in ("mean", "centered_clipping") else 0.65)
    assert weight.max() < 0.85


async def test_the_undefended_mean_does_not(tmp_path):
    _, weight, _ = await run(tmp_path, rule="mean", byzantine=0, rounds=1)
    assert weight.max() < -3


def test_every_rule_and_pre_aggregation_is_run_here() -> None:
    assert set(CASES) == set(RULES)
    used = {choice.partition(":")[0] for case in CASES.values() for choice in case.get("pre_aggregation", ())}
    assert used == set(PRE_AGGREGATIONS)
