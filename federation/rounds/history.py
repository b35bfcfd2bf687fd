"""What is remembered of a committed round. The journal holds it as JSON, the director as a RoundReport.

A `RoundRecord` is complete in itself: which sites were asked, what became of each, how long each phase took, and which
model came out. `federation.wire.reports` translates it for the wire.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from federation.names import Epoch, RoundNumber, SiteName


class SiteOutcome(Enum):
    """What became of a site that was asked in a round."""

    COUNTED = "counted"
    LATE = "late"
    REFUSED = "refused"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord:
    """What one site did in one round.

    Attributes:
        site: its name.
        outcome: whether its update counted, or why not.
        reason: why it did not count; empty if it did.
        examples: training examples behind its update.
        weight: its share of the weights that the method gives, 0 to 1: of the aggregate with the mean, and nothing more
            with other rules, whose own weights are in `scores` as ``rule_weight``.
        update_norm: L2 norm of its parameter change, also where it was refused for that; 0 where none came.
        train_seconds: what its trainer took, seconds.
        transfer_seconds: from header to admission of its upload, seconds.
        bytes_up: payload bytes it sent.
        bytes_down: payload bytes it fetched.
        train_metrics: its training metrics.
        metrics: its metrics of the new model; empty if it did not evaluate.
        update_digest: SHA-256 over its payload digests, hex; empty without an update.
        validation_examples: validation examples behind `metrics`.
        oracle_calls: gradients of single examples it computed.
        peak_memory: most memory its trainer had resident at once, bytes; in simulation, the process it was trained in.
            0 if not known.
        staleness: rounds between the model its update starts from and the one it went into.
        scores: how its update lay to the aggregate and the others: ``distance``, ``cosine`` and ``krum`` of
            `federation.aggregation.scores`, and ``rule_weight``, what the rule multiplied it by, or its trust with
            fltrust; those that apply.
    """

    site: SiteName
    outcome: SiteOutcome
    reason: str = ""
    examples: int = 0
    weight: float = 0.0
    update_norm: float = 0.0
    train_seconds: float = 0.0
    transfer_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    train_metrics: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    update_digest: str = ""
    validation_examples: int = 0
    oracle_calls: int = 0
    peak_memory: int = 0
    staleness: int = 0
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedSite:
    """A site that is not asked any more, as `federation.rounds.quarantine` decided.

    Attributes:
        site: its name.
        since_round: the round whose commit quarantined it.
        releases: times it had been released before.
        reason: why, for people.
    """

    site: SiteName
    since_round: RoundNumber
    releases: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One committed round.

    Attributes:
        round: its number, from 1.
        epoch: epoch of the aggregator that committed it.
        sequence: journal sequence of its commit; 0 until the journal has given one.
        started_at: Unix time of its first attempt, seconds.
        seconds: from select to commit, seconds.
        phase_seconds: seconds by phase: select, broadcast, collect, aggregate, evaluate, commit.
        sites: one record per site asked, in name order.
        train_metrics: of the counted sites: the mean weighted by examples, or the median where the plan's `byzantine`
            is above 0.
        metrics: federated evaluation of the new model, likewise with validation examples, over the sites that answered;
            empty if there was none.
        model_digest: BLAKE3 of the committed ``model`` payload, hex.
        is_best: best so far by the plan's measure.
        bytes_down: payload bytes sent to sites.
        bytes_up: payload bytes received from sites.
        update_norm: L2 norm of the aggregated change of the parameters.
        simulated_seconds: machine time of a simulated round, seconds; 0 for a real one.
        total_sites: N of the method: sites it counts with, asked or not; 0 if not recorded.
        algorithm_scalars: numbers the server half of the method computed for this round.
        rule_note: what the aggregation rule says of the round; empty if nothing.
        quarantined: sites in quarantine once the round is committed, in name order.
        unevaluated: of each site that was asked to evaluate, asked to train or not, and has no part in `metrics`, why.
    """

    round: RoundNumber
    epoch: Epoch
    sequence: int = 0
    started_at: float
    seconds: float
    phase_seconds: dict[str, float] = field(default_factory=dict)
    sites: tuple[SiteRecord, ...] = ()
    train_metrics: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    model_digest: str
    is_best: bool = False
    bytes_down: int = 0
    bytes_up: int = 0
    update_norm: float = 0.0
    simulated_seconds: float = 0.0
    total_sites: int = 0
    algorithm_scalars: dict[str, float] = field(default_factory=dict)
    rule_note: str = ""
    quarantined: tuple[QuarantinedSite, ...] = ()
    unevaluated: dict[SiteName, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        document = asdict(self)
        for site in document["sites"]:
            site["outcome"] = site["outcome"].value
        document["sites"], document["quarantined"] = list(document["sites"]), list(document["quarantined"])
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> RoundRecord:
        """Read it back.

        Raises:
            ValueError: it is not a round record.
        """
        try:
            sites = tuple(SiteRecord(**{**site, "outcome": SiteOutcome(site["outcome"])}) for site in document["sites"])
            quarantined = tuple(QuarantinedSite(**row) for row in document.get("quarantined", ()))
            return cls(**{**document, "sites": sites, "quarantined": quarantined})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a round record: {error}") from error


def weighted_mean(rows: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Return the mean of each metric over the rows that have it.

    Args:
        rows: weight (0 or more) and metrics of each site, in name order, so that the sum is the same on any machine.

    Returns:
        One value per metric name; a metric whose weights are all 0 is averaged uniformly.
    """
    totals: dict[str, list[tuple[float, float]]] = {}
    for weight, metrics in rows:
        for name, value in metrics.items():
            totals.setdefault(name, []).append((weight, value))
    means: dict[str, float] = {}
    for name in sorted(totals):
        pairs = totals[name]
        whole = sum(weight for weight, _ in pairs)
        if whole > 0:
            means[name] = sum(weight * value for weight, value in pairs) / whole
        else:
            means[name] = sum(value for _, value in pairs) / len(pairs)
    return means
