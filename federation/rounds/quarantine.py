"""Which sites are not asked any more because their updates looked hostile round after round. Pure: state in, state out.

The plan's `Quarantine` names a score of `federation.aggregation.scores`, a threshold and k rounds. Rules, in order:

1. A strike is a round in which a site's update counted and its score was beyond the threshold: ``distance`` and
   ``krum`` above `threshold` times the round's median of that score, over at least `LEAST_SITES` sites; ``cosine``
   below `threshold` itself. Where the median is 0 nothing is measured in it, and only the largest score is a strike:
   whoever makes the others' scores vanish is the farthest. A round in which it counted and was not beyond clears its
   strikes; one in which it did not count leaves them.
2. k strikes in a row quarantine the site, the most suspicious first, as long as no more are held than hostile sites
   are to be stood: `byzantine` at a time, or where that is 0 fewer than half. Else a few could frame the honest ones,
   and the rest would be theirs. A site held stays connected and keeps its state, is asked neither to train nor to
   evaluate, and does not count among the sites a round needs.
3. A release, by an operator, lets it be asked again and clears its strikes. Releases are numbered per site: one that
   was obeyed before changes nothing.

What the journal keeps of a commit and of a release is all a restarted aggregator, or a resumed simulation, needs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from federation.errors import PlanError
from federation.names import SiteName
from federation.rounds.history import QuarantinedSite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.names import RoundNumber
    from federation.plan import Plan, Quarantine
    from federation.rounds.history import RoundRecord

LEAST_SITES = 3
"""Of two updates each is as far from the middle as the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What is held against sites.

    Attributes:
        strikes: by site, rounds in a row beyond the threshold; sites without any are not listed.
        held: sites in quarantine, in name order.
        releases: by site, how often it was released.
    """

    strikes: Mapping[SiteName, int] = field(default_factory=dict)
    held: tuple[QuarantinedSite, ...] = ()
    releases: Mapping[SiteName, int] = field(default_factory=dict)

    @property
    def sites(self) -> frozenset[SiteName]:
        """Sites in quarantine."""
        return frozenset(row.site for row in self.held)

    def to_json(self) -> dict[str, Any]:
        """Return what a round's record does not have of it already."""
        return {"strikes": dict(sorted(self.strikes.items())), "releases": dict(sorted(self.releases.items()))}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], record: RoundRecord) -> Suspicion:
        """Read it back.

        Raises:
            ValueError: it is not a suspicion.
        """
        try:
            strikes = {SiteName(site): int(count) for site, count in document["strikes"].items()}
            releases = {SiteName(site): int(count) for site, count in document["releases"].items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a suspicion: {error!r}") from error
        return cls(strikes=strikes, held=record.quarantined, releases=releases)


def judge(
    policy: Quarantine | None,
    before: Suspicion,
    round_number: RoundNumber,
    scores: Mapping[SiteName, Mapping[str, float]],
    *,
    trusted: SiteName | None = None,
    byzantine: int = 0,
) -> Suspicion:
    """Return what is held against sites after a round.

    Args:
        policy: the plan's; None: nobody is quarantined.
        before: after the round before.
        round_number: the round.
        scores: of each site whose update counted.
        trusted: the site the plan's rule trusts, which gets no strikes: without it no round could be aggregated.
        byzantine: f of the plan, most sites to hold at a time; 0: fewer than half of those that are scored or held.
    """
    if policy is None:
        return before
    found = {site: row[policy.score] for site, row in sorted(scores.items()) if policy.score in row}
    is_relative = policy.score != "cosine"
    if not found or (is_relative and len(found) < LEAST_SITES):
        return before
    limit = policy.threshold * (statistics.median(found.values()) if is_relative else 1.0)
    strikes, held = dict(before.strikes), {row.site: row for row in before.held}
    most_held = byzantine or (len({*found, *held}) - 1) // 2
    beyond = _beyond(found, limit, is_relative=is_relative) - {trusted}
    for site, value in sorted(found.items(), key=lambda row: -row[1] if is_relative else row[1]):
        if site not in beyond:
            strikes.pop(site, None)
            continue
        strikes[site] = strikes.get(site, 0) + 1
        if strikes[site] >= policy.rounds and site not in held and len(held) < most_held:
            del strikes[site]
            held[site] = QuarantinedSite(
                site=site,
                since_round=round_number,
                releases=before.releases.get(site, 0),
                reason=_explain(policy, value, limit),
            )
    return replace(before, strikes=strikes, held=tuple(held[site] for site in sorted(held)))


def _beyond(found: Mapping[SiteName, float], limit: float, *, is_relative: bool) -> set[SiteName]:
    if not is_relative:
        return {site for site, value in found.items() if value < limit}
    if limit == 0:
        largest = max(found.values())
        return {site for site, value in found.items() if value == largest > 0}
    return {site for site, value in found.items() if value > limit}


def release(before: Suspicion, site: SiteName, releases: int) -> Suspicion:
    """Return what is held against sites once one is released; the same if that release was obeyed before.

    Args:
        before: as it was.
        site: the site.
        releases: how often it has been released, this time included.
    """
    if releases <= before.releases.get(site, 0):
        return before
    return Suspicion(
        strikes={name: count for name, count in before.strikes.items() if name != site},
        held=tuple(row for row in before.held if row.site != site),
        releases={**before.releases, site: releases},
    )


def check_quarantine(plan: Plan, *, updates: int | None) -> None:
    """Refuse a policy that could never act, or that a hostile site could turn against the honest ones.

    Args:
        plan: has the policy, or None.
        updates: most updates a round is made of; None: as many as there are sites.

    Raises:
        PlanError: too few updates have the score, the rule lets one site decide it, or there is no site to spare;
            says what to change.
    """
    policy = plan.quarantine
    if policy is None:
        return
    if policy.score == "cosine" and plan.rule == "mean":
        raise PlanError(
            "quarantine by cosine needs a robust rule: the mean points where one huge update points, and the honest "
            "sites would be held. Use score 'krum' or 'distance', or a rule such as 'median'"
        )
    needed = {"cosine": 2, "distance": LEAST_SITES, "krum": max(LEAST_SITES, plan.byzantine + 3)}[policy.score]
    if plan.sites_wanted == plan.sites_needed >= needed:
        lower = " and ".join(
            f"{field} ({value})"
            for field, value in (("minimum_sites", plan.minimum_sites), ("quorum", plan.quorum))
            if value == plan.sites_needed
        )
        raise PlanError(
            f"quarantine would stop the experiment it is to save: {plan.sites_needed} sites are needed of "
            f"{plan.sites_wanted} wanted, and with the first that is held it would pause and fail: lower {lower}, or "
            "raise sites"
        )
    if updates is not None and updates < needed:
        raise PlanError(
            f"quarantine by {policy.score} needs rounds of {needed} updates, and at most {updates} make one here: let "
            "more sites take part (sites, sample, a larger buffer), or leave quarantine out"
        )


def _explain(policy: Quarantine, value: float, limit: float) -> str:
    if policy.score == "cosine":
        return f"cosine below {policy.threshold:g} in {policy.rounds} rounds in a row, the last {value:.3g}"
    return (
        f"{policy.score} above {policy.threshold:g} times the round's median in {policy.rounds} rounds in a row, the "
        f"last {value:.4g} where {limit:.4g} was the limit"
    )
