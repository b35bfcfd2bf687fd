"""A model that a simulated round made, as the book of rounds and the server's models know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.aggregation.rule import RuleReport
    from federation.names import Digest, SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A finished model that is not committed.

    Attributes:
        digest: of the model.
        update_norm: L2 norm of the change.
        weights: of each site, in name order.
        scores: of each site's change.
        report: what the rule says of the round.
    """

    digest: Digest
    update_norm: float
    weights: tuple[float, ...]
    scores: Mapping[SiteName, Mapping[str, float]]
    report: RuleReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """What a step costs: its bytes with those of the buffers beside it, and the digest of the model it is added to."""

    from_digest: bytes
    nbytes: int
