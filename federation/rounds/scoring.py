"""Which model is the best, and when to stop early: the plan's measure, applied round by round.

The best model is the one with the best value ever seen. Early stopping is stricter: an evaluation counts as progress
only if it improves on the last that did by more than `min_delta`; after `patience` evaluations without progress the
experiment is complete. A round without metrics changes neither. Where the plan stands hostile sites the measure is the
median over the sites, so that none of them ends the experiment or picks its model by what it claims.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

from federation.rounds.history import weighted_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.names import RoundNumber, SiteName
    from federation.plan import Plan
    from federation.rounds.events import Score, SiteEvaluated


def federated_metrics(evaluations: Mapping[SiteName, SiteEvaluated], *, byzantine: int) -> dict[str, float]:
    """Return what the sites found in evaluation as one; see `combined`."""
    rows = [(evaluations[site].examples, evaluations[site].metrics) for site in sorted(evaluations)]
    return combined(rows, byzantine=byzantine)


def combined(rows: Sequence[tuple[float, Mapping[str, float]]], *, byzantine: int) -> dict[str, float]:
    """Return the sites' metrics, of training or of evaluation, as one.

    Args:
        rows: examples and metrics of each site, in name order.
        byzantine: f of the plan. 0: the mean weighted by examples. Else the median over the sites that have the
            metric, each counted once: values and examples are the sites' word.
    """
    if not byzantine:
        return weighted_mean([(examples, dict(metrics)) for examples, metrics in rows])
    names = sorted({name for _, metrics in rows for name in metrics})
    return {name: statistics.median(metrics[name] for _, metrics in rows if name in metrics) for name in names}


def judge(
    plan: Plan, score: Score, round_number: RoundNumber, metrics: Mapping[str, float], *, is_degraded: bool
) -> tuple[Score, bool]:
    """Return the score after a round, and whether its model is the best so far.

    Args:
        plan: says which metric, which direction and how patient.
        score: before the round.
        round_number: the round.
        metrics: its federated evaluation; empty if there was none.
        is_degraded: it had fewer contributions than planned.
    """
    score = replace(score, is_degraded=score.is_degraded or is_degraded)
    value = metrics.get(plan.best.metric)
    if value is None:
        return score, False
    min_delta = plan.early_stopping.min_delta if plan.early_stopping else 0.0
    if plan.best.is_better(value, score.reference, by=min_delta):
        score = replace(score, reference=value, stale=0)
    else:
        score = replace(score, stale=score.stale + 1)
    is_best = plan.best.is_better(value, score.best)
    if is_best:
        score = replace(score, best=value, best_round=round_number)
    return score, is_best


def stop_reason(plan: Plan, score: Score) -> str:
    """Return why the experiment stops early, or an empty text if it does not."""
    if plan.early_stopping is None or score.stale < plan.early_stopping.patience:
        return ""
    return (
        f"stopped early: {plan.best.metric} did not improve in {score.stale} evaluations; "
        f"the best, {score.best:.6g}, is of round {score.best_round}"
    )
