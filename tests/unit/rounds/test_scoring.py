"""Which model is the best, where a site may lie about how good it is."""

from __future__ import annotations

import pytest

from federation.names import RoundNumber, SiteName
from federation.plan import BestModel, Plan
from federation.rounds import scoring
from federation.rounds.events import Score, SiteEvaluated


def evaluations(values, liar=None):
    rows = {
        f"s{index}": SiteEvaluated(SiteName(f"s{index}"), 30, {"accuracy": value}) for index, value in enumerate(values)
    }
    if liar is not None:
        rows["liar"] = SiteEvaluated(SiteName("liar"), 10**9, {"accuracy": liar})
    return rows


def test_one_liar_does_not_choose_the_best_model_of_a_plan_that_stands_hostile_sites():
    plan = Plan(best=BestModel(metric="accuracy", direction="max"), rule="median", byzantine=2)
    score = Score()
    for number in range(1, 5):
        found = evaluations([0.2 * number] * 9, liar=1e6 if number == 1 else 0.0)
        metrics = scoring.federated_metrics(found, byzantine=plan.byzantine)
        score, is_best = scoring.judge(plan, score, RoundNumber(number), metrics, is_degraded=False)
        assert is_best
    assert score.best_round == 4 and score.best == pytest.approx(0.8)


def test_without_hostile_sites_metrics_are_means_by_examples_and_with_them_medians():
    found = evaluations([0.0, 0.1, 1.0])
    assert scoring.federated_metrics(found, byzantine=0)["accuracy"] == pytest.approx(1.1 / 3)
    assert scoring.federated_metrics(found, byzantine=1) == {"accuracy": 0.1}
    assert scoring.federated_metrics({}, byzantine=1) == {}


def test_metrics_that_some_sites_lack_are_of_those_that_have_them():
    rows = [(1, {"loss": 1.0}), (10**9, {"loss": 1e9, "auc": 0.5}), (3, {"loss": 2.0})]
    assert scoring.combined(rows, byzantine=1) == {"auc": 0.5, "loss": 2.0}
    assert scoring.combined(rows[::2], byzantine=0) == {"loss": 1.75}
