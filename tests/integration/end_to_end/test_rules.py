"""Rules and pre-aggregations in a whole federation of which every process is real, one site of three hostile.

``west`` trains as everybody does and hands over ten times the way back. What a rule makes of it must be near to what
the honest sites learn without ``west``, where the mean without defence is not, and bit for bit what the same experiment
gives in simulation. Here are a rule that looks at places, one that trusts a site by its name, and the mean behind
clipping; `test_rules_over_the_wire.py` has every rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Array = np.ndarray[Any, Any]

HOSTILE, ATTACK = "west", "sign_flip:10"
SITES = ("north", "south", HOSTILE)
CASES: dict[str, dict[str, Any]] = {
    "mean": {"pre_aggregation": ("arc",), "weighting": "uniform"},
    "trimmed_mean": {"pre_aggregation": ("nnm",)},
    "fltrust": {"rule_options": {"trusted": "north"}},
}
"""What else the plan says."""
NEAR = {"mean": 0.75, "trimmed_mean": 0.4, "fltrust": 0.4}
"""Of the way that the honest sites go, how much may be left: less than half, and more where updates are only clipped to
a length, for ``west`` then turns some of it back."""


def answers(count: int) -> dict[str, Any]:
    """Return what a plan says to wait for all of so many sites."""
    return {"sites": count, "minimum_sites": count, "quorum": count}


def plan_of(case: str) -> dict[str, Any]:
    return {
        "rule": case, "byzantine": 1, "learning_rate": 0.1, "evaluate_every": 0, **answers(len(SITES)), **CASES[case],
    }  # fmt: skip


@pytest.fixture(scope="module", name="runs")
def _runs(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Any]]:
    """Submit every case to one federation; the director runs a few at once."""
    with start(tmp_path_factory.mktemp("rules"), dict.fromkeys(SITES, ())) as trial:
        yield {
            case: trial.submit(
                name=case.replace("_", "-"), plan=plan_of(case), attacks={HOSTILE: ATTACK}, gate=None
            )
            for case in CASES
        }  # fmt: skip


class Course:
    """The way that the honest sites go without the hostile one, by the mean.

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


@pytest.fixture(scope="module", name="course")
def _course(runs: Mapping[str, Any], rows_of: Callable[[str], Any]) -> Course:
    return Course(runs["mean"].source, {name: rows_of(name) for name in SITES})


def flat(model: Mapping[str, Any]) -> Array:
    return np.concatenate([np.ravel(model[name]) for name in ("weights", "bias")]).astype(np.float64)


@pytest.mark.parametrize("case", CASES)
def test_the_model_goes_the_honest_way_and_is_that_of_a_simulation_to_the_bit(
    runs: Mapping[str, Any], course: Course, rows_of: Callable[[str], Any], case: str
) -> None:
    run = runs[case]
    rounds = run.complete().rounds
    assert [[(one.site, one.outcome) for one in entry.contributions] for entry in rounds] == [
        [(site, "counted") for site in SITES]
    ] * 2
    model = run.model()
    assert course.left(flat(model)) < NEAR[case]

    same = simulate(run.source, sites=SITES, data={name: rows_of(name) for name in SITES})
    assert [entry.model_digest for entry in rounds] == [record.model_digest for record in same.records]
    assert {name: value.tobytes() for name, value in model.items()} == {
        name: value.tobytes() for name, value in same.arrays.items()
    }


def test_the_mean_without_defence_goes_the_other_way(course: Course) -> None:
    assert course.undefended > 1.5, "the attack would ruin what nobody defends"
