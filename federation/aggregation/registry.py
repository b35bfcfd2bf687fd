"""Which rules and pre-aggregations there are, how a plan's are found, and for which plans they are sound.

1. Built-in names cannot be taken. Further rules are plugins the operator installed, in the entry-point group
   ``federation.aggregation_rules``: an entry is a subclass of `AggregationRule`. No code comes from the wire.
2. `check` refuses a plan whose rule does not exist, has wrong options, or cannot stand what the plan asks of it with
   the fewest updates a round may close with, or takes fewer than it will have.
3. The mean stands hostile sites only where updates are clipped before it and a site cannot weigh what it says.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from federation.aggregation.combiner import Aggregation
from federation.aggregation.rule import AggregationRule, NeverEnoughError
from federation.errors import PlanError
from federation.plan.plugins import Catalogue, load_plugin

if TYPE_CHECKING:
    from federation.aggregation.before.pre_aggregation import PreAggregation
    from federation.names import SiteName
    from federation.plan import Plan

ENTRY_POINT_GROUP = "federation.aggregation_rules"

RULES: Catalogue[type[AggregationRule]] = Catalogue(
    "federation.aggregation",
    {
        "mean": "mean:WeightedMean",
        "median": "median:Median",
        "trimmed_mean": "trimmed_mean:TrimmedMean",
        "meamed": "meamed:MeaMed",
        "krum": "krum:Krum",
        "multi_krum": "multi_krum:MultiKrum",
        "bulyan": "bulyan:Bulyan",
        "geometric_median": "geometric_median:GeometricMedian",
        "centered_clipping": "centered_clipping:CenteredClipping",
        "mda": "mda:Mda",
        "monna": "monna:Monna",
        "smea": "smea:Smea",
        "caf": "caf:Caf",
        "fltrust": "fltrust:FlTrust",
    },
)
"""Every built-in rule by name, in the order of the documentation."""

PRE_AGGREGATIONS: Catalogue[type[PreAggregation]] = Catalogue(
    "federation.aggregation",
    {
        "nnm": "before.nnm:Nnm",
        "bucketing": "before.bucketing:Bucketing",
        "clipping": "before.clipping:Clipping",
        "arc": "before.arc:Arc",
    },
)
"""Every pre-aggregation by name, in the order of the documentation."""


HALF = 0.5
"""Who weighs that much of a mean of clipped updates decides it."""


MOST_TRIED = 100
"""Updates, for each hostile site and one more, up to which to look for enough; bulyan needs fewer than 5 of them."""


def rule_names() -> list[str]:
    """Return the names a plan may use here: ours and those of installed plugins."""
    return sorted({*RULES, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})


def load_rule(name: str, **options: Any) -> AggregationRule:
    """Return a rule with its options.

    Raises:
        PlanError: there is none of that name, and the text names the nearest; or an option is wrong.
        ConfigurationError: a plugin's entry point cannot be loaded.
    """
    if name in RULES:
        return RULES[name](**options)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return load_plugin(entry, AggregationRule, "aggregation rule")(**options)  # type: ignore[type-abstract]
    raise _unknown("aggregation rule", name, rule_names())


def load_pre_aggregation(choice: str) -> PreAggregation:
    """Return a pre-aggregation as a plan writes it, such as ``nnm`` or ``clipping:1.5``.

    Raises:
        PlanError: there is none of that name, or what follows the colon is wrong.
    """
    name, colon, text = choice.partition(":")
    if name not in PRE_AGGREGATIONS:
        raise _unknown("pre_aggregation", name, list(PRE_AGGREGATIONS))
    kind = PRE_AGGREGATIONS[name]
    fields = list(kind.model_fields)
    if colon and not fields:
        raise PlanError(f"pre_aggregation {choice[:80]!r}: {name!r} has no options; write it as {name!r}")
    try:
        return kind(**{fields[0]: text} if colon else {})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise PlanError(
            f"pre_aggregation {choice[:80]!r}: {fields[0]}: {problem}; write it as '{name}:{fields[0].upper()}'"
        ) from error


def load_aggregation(plan: Plan) -> Aggregation:
    """Return what a plan does to the updates of a round.

    Raises:
        PlanError, ConfigurationError: as `load_rule` and `load_pre_aggregation`.
    """
    return Aggregation(
        rule=load_rule(plan.rule, **plan.rule_options),
        before=tuple(map(load_pre_aggregation, plan.pre_aggregation)),
        byzantine=plan.byzantine,
    )


def trusted_site(plan: Plan) -> SiteName | None:
    """Return the site without whose update the plan's rule cannot aggregate a round; None for most rules.

    Raises:
        PlanError, ConfigurationError: as `load_rule`.
    """
    return load_aggregation(plan).rule.trusted_site


def check(plan: Plan, fewest: int, advice: str = "raise quorum, or lower byzantine") -> Aggregation:
    """Return what a plan does to the updates of a round, if it can stand what the plan says.

    Args:
        plan: the plan.
        fewest: updates a round may close with.
        advice: how the plan could need more of them.

    Raises:
        PlanError: says what does not fit and what to change.
    """
    aggregation = load_aggregation(plan)
    steps: list[AggregationRule | PreAggregation] = [aggregation.rule, *aggregation.before]
    asking = next((step.name for step in steps if step.needs_byzantine), None)
    if asking and not plan.byzantine:
        raise PlanError(
            f"{asking!r} must be told how many hostile sites to stand, and byzantine is 0: set byzantine to 1 "
            "or more, or use the mean or the median"
        )
    if plan.byzantine and plan.rule == "mean":
        _check_hostile_mean(plan, aggregation, fewest, advice)
    try:
        aggregation.check(fewest)
    except NeverEnoughError:
        raise
    except PlanError as error:
        raise PlanError(f"{error}. A round of this plan may close with {fewest}: {advice}") from error
    if aggregation.rule.is_bounded and plan.sample is None:
        raise PlanError(
            f"rule {plan.rule!r} takes only so many updates, and without sample every site that joins is asked: set "
            f"sample, such as {plan.sites_wanted}, the sites wanted"
        )
    # Some rules search, and take only so many.
    aggregation.check(max(fewest, plan.sample or plan.sites_wanted))
    return aggregation


def fewest_enough(plan: Plan) -> int | None:
    """Return the fewest updates with which a plan's rule stands `byzantine`; None: no number, or not every larger one.

    Raises:
        PlanError, ConfigurationError: as `load_aggregation`.
    """
    aggregation = load_aggregation(plan)
    if aggregation.rule.is_bounded:
        return None

    def is_enough(count: int) -> bool:
        try:
            aggregation.check(count)
        except PlanError:
            return False
        return plan.rule != "mean" or count > 2 * plan.byzantine or _has_arc(aggregation)

    tried = range(1, MOST_TRIED * (plan.byzantine + 1))
    place = bisect_left(tried, True, key=is_enough)
    return tried[place] if place < len(tried) else None


def _has_arc(aggregation: Aggregation) -> bool:
    return any(step.name == "arc" for step in aggregation.before)


def _check_hostile_mean(plan: Plan, aggregation: Aggregation, fewest: int, advice: str) -> None:
    """Refuse a mean that shall stand hostile sites and lets one of them be long or weigh as much as it says."""
    f, share = plan.byzantine, plan.max_share
    if not any(step.name in ("arc", "clipping") for step in aggregation.before):
        raise PlanError(
            f"byzantine is {f}, and the mean stands no hostile site unless updates are clipped before it: choose "
            "another rule, such as 'trimmed_mean', add 'arc' to pre_aggregation, or leave byzantine at 0"
        )
    if plan.weighting != "uniform" and (share is None or f * share >= HALF):
        given = f", and {f} hostile at max_share {share:g} may weigh half or more" if share is not None else ""
        raise PlanError(
            f"byzantine is {f}, and the mean weighs by examples, which are the sites' word{given}: set weighting "
            f"'uniform', or max_share below {HALF / f:g}"
        )
    if 2 * f >= fewest and not _has_arc(aggregation):
        raise PlanError(
            f"clipping before the mean stands byzantine = {f} only where 2f < n: it needs {2 * f + 1} updates or more "
            f"and has {fewest}. A round of this plan may close with {fewest}: {advice}"
        )


def _unknown(what: str, name: str, names: list[str]) -> PlanError:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return PlanError(f"there is no {what} {name[:80]!r} here, only {', '.join(names)}{hint}")
