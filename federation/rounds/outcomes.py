"""What the history says of a round's phases and sites, over the wire and in a simulation alike."""

from __future__ import annotations

from federation.rounds.events import Phase, Progress
from federation.rounds.history import SiteOutcome

TIMED = frozenset({Phase.SELECT, Phase.BROADCAST, Phase.COLLECT, Phase.AGGREGATE, Phase.EVALUATE, Phase.COMMIT})
"""Phases whose time is part of the round's record."""
OUTCOMES = {
    Progress.ADMITTED: SiteOutcome.COUNTED,
    Progress.REFUSED: SiteOutcome.REFUSED,
    Progress.FAILED: SiteOutcome.FAILED,
    Progress.LOST: SiteOutcome.LOST,
    Progress.LATE: SiteOutcome.LATE,
    Progress.ASKED: SiteOutcome.LATE,
}
MAX_REASON = 500
"""Characters of a reason that are kept: it may quote what a peer sent."""
