"""Every rule and every pre-aggregation in a whole federation of which every process is real, one site hostile.

``west`` trains as everybody does and hands over ten times the way back. Each rule has the fewest sites of which it
stands one hostile: sites offer a kind of shard for each number of sites. What a rule makes of it must be near to what
the honest sites learn without ``west``, where the mean without defence is not, and bit for bit what the same experiment
gives in simulation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.aggregation.registry import PRE_AGGREGATIONS, RULES
from federation.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Array = np.ndarray[Any, Any]

HOSTILE, ATTACK = "west", "sign_flip:10"
SITES = {
    3: ("north", "south", HOSTILE),
    5: ("centre", "east", "north", "south", HOSTILE),
    7: ("centre", "coast", "east", "hills", "north", "south", HOSTILE),
}
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
NEAR = {**dict.fromkeys(CASES, 0.4), "mean": 0.75, "centered_clipping": 0.75}
"""Of the way that the honest sites go, how much may be left: less than half, and more where updates are only clipped to
a length, for ``west`` then turns some of it back."""


def answers(count: int) -> dict[str, Any]:
    """Return what a plan says to wait for all of so many sites."""
    return {"sites": count, "minimum_sites": count, "quorum": count}


def plan_of(case: str) -> dict[str, Any]:
    count, options = CASES[case]
    return {"rule": case, "byzantine": 1, "learning_rate": 0.1, "evaluate_every": 0, **answers(count), **options}


@pytest.fixture(scope="module", name="runs")
def _runs(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Any]]:
    """Submit every case to one federation; the director runs a few at once."""
    kinds = {name: tuple(f"of{count}" for count in SITES if name in SITES[count]) for name in SITES[7]}
    settings = {"attacks": {HOSTILE: ATTACK}, "gate": None}
    with start(tmp_path_factory.mktemp("rules"), kinds) as trial:
        yield {
            case: trial.submit(name=case.replace("_", "-"), shard=f"of{CASES[case][0]}", plan=plan_of(case), **settings)
            for case in CASES
        }


class Course:
    """The way that the honest of some sites go without the hostile one, by the mean.

    Args:
        source: folder of an experiment, whatever its rule.
        data: shard of each site, the hostile one's too.
    """

    def __init__(self, source: Path, data: Mapping[str, Any]) -> None:
        self._source = source
        self._begin = np.concatenate([np.full(4, 0.125), np.zeros(1)])
        self._end = self._mean({name: shard for name, shard in data.items() if name != HOSTILE})
        self.undefended = self.left(self._mean(data))

    def left(self, model: Array) -> float:
        """Return how far from its end a model is, in lengths of the way: 1 before the first round."""
        return float(np.linalg.norm(model - self._end) / np.linalg.norm(self._begin - self._end))

    def _mean(self, data: Mapping[str, Any]) -> Array:
        changes = {"rule": "mean", "byzantine": 0, "pre_aggregation": (), "weighting": "uniform", **answers(len(data))}
        return flat(simulate(self._source, sites=sorted(data), data=data, changes=changes).arrays)


@pytest.fixture(scope="module", name="courses")
def _courses(runs: Mapping[str, Any], rows_of: Callable[[str], Any]) -> Mapping[int, Course]:
    """Return the honest way by number of sites."""
    source = runs["mean"].source
    return {count: Course(source, {name: rows_of(name) for name in names}) for count, names in SITES.items()}


def flat(model: Mapping[str, Any]) -> Array:
    return np.concatenate([np.ravel(model[name]) for name in ("weights", "bias")]).astype(np.float64)


@pytest.mark.parametrize("case", CASES)
def test_the_model_goes_the_honest_way_and_is_that_of_a_simulation_to_the_bit(
    runs: Mapping[str, Any], courses: Mapping[int, Course], rows_of: Callable[[str], Any], case: str
) -> None:
    run, count = runs[case], CASES[case][0]
    rounds = run.complete().rounds
    assert [[(one.site, one.outcome) for one in entry.contributions] for entry in rounds] == [
        [(site, "counted") for site in SITES[count]]
    ] * 2
    model = run.model()
    assert courses[count].left(flat(model)) < NEAR[case]

    same = simulate(run.source, sites=SITES[count], data={name: rows_of(name) for name in SITES[count]})
    assert [entry.model_digest for entry in rounds] == [record.model_digest for record in same.records]
    assert {name: value.tobytes() for name, value in model.items()} == {
        name: value.tobytes() for name, value in same.arrays.items()
    }


def test_the_mean_without_defence_goes_the_other_way(courses: Mapping[int, Course]) -> None:
    assert all(course.undefended > 1.5 for course in courses.values()), "the attack would ruin what nobody defends"


def test_every_rule_and_pre_aggregation_is_run_here() -> None:
    assert set(CASES) == set(RULES)
    used = {choice.partition(":")[0] for _, plan in CASES.values() for choice in plan.get("pre_aggregation", ())}
    assert used == set(PRE_AGGREGATIONS)
