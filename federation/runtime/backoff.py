"""How long to wait before dialling again: doubling, capped, and spread so that sites do not come back in step.

The one place where waiting is by time: nothing announces that a peer is reachable again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

STANDING_S = 10.0
"""Seconds that a session must have stood for its end to be no failure of the dialling: a peer that lets us in and drops
us at once is not there any more than one that does not answer."""


@dataclass(slots=True)
class Backoff:
    """Delays between attempts.

    Attributes:
        first_s: delay after the first failure, seconds.
        most_s: longest delay, seconds.
        rng: source of the spread; nothing secret depends on it.
    """

    first_s: float = 0.1
    most_s: float = 30.0
    rng: random.Random = field(default_factory=random.Random)
    _failures: int = 0

    def next_s(self) -> float:
        """Return the delay before the next attempt, seconds: between half and all of the doubled delay."""
        delay = min(self.most_s, self.first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return delay * (0.5 + 0.5 * self.rng.random())

    @property
    def failures(self) -> int:
        """Failures since the last success."""
        return self._failures

    def reset(self) -> None:
        """Note a success: the next delay is the first again."""
        self._failures = 0

    def stood(self, seconds: float) -> None:
        """Note that a session has ended: a success if it stood for long."""
        if seconds >= STANDING_S:
            self.reset()
