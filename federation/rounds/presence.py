"""Who is there: when rounds may begin, whom a restart waits for, and what of that must be known after the next one.

Who is there decides who is drawn, so the journal holds it: `RecordPresent` says so with the first draw and whenever it
changes from then on. A restarted aggregator waits, `REJOIN_S` at most, for exactly these: all of them come to the draw
that an undisturbed run makes, and nobody waits for a site that was lost before. The attempt in progress draws from
those it was drawn from before, its *pool*, if they are all back; whoever came since takes part from the next draw on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.rounds.events import RecordPresent

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from federation.names import Attempt, RoundNumber, SiteName
    from federation.plan import Plan
    from federation.rounds.events import Resume

REJOIN_S = 30.0
"""Seconds a restarted aggregator waits for the sites it had: they redial within a few."""


class Presence:
    """What a machine knows of who is there beyond who is connected now.

    Args:
        plan: what the experiment does.
        resume: where it goes on.
    """

    def __init__(self, plan: Plan, resume: Resume) -> None:
        self._plan = plan
        self._expected = frozenset(resume.expected)
        self._is_restart = resume.round > 1 or bool(resume.expected)
        self._has_waited = False
        self._noted = self._expected if resume.pool else None  # with a pool, the journal has them both
        self._pool: frozenset[SiteName] | None = frozenset(resume.pool) or None

    @property
    def has_pool(self) -> bool:
        """Whether the attempt in progress was drawn before a restart, and has not been drawn since."""
        return self._pool is not None

    @property
    def first_wait_s(self) -> float:
        """Seconds that joining may take at first."""
        return min(REJOIN_S, self._plan.join_timeout_s) if self._is_restart else self._plan.join_timeout_s

    def is_complete(self, connected: AbstractSet[SiteName], held: AbstractSet[SiteName], participants: int) -> bool:
        """Tell whether rounds may begin.

        Args:
            connected: sites that are connected.
            held: sites in quarantine.
            participants: sites for a round, those included that are away and whose updates are in.
        """
        here = len(connected - held)
        if self._has_waited:
            return participants >= self._plan.sites_needed
        if self._is_restart:
            # A site whose update is in is waited for all the same: it should evaluate, and take part from now on.
            return connected >= self._expected - held and here >= self._plan.sites_needed
        return here >= max(self._plan.sites_wanted, self._plan.sites_needed)

    def extend(self) -> bool:
        """Take in that the wait for those of before a restart is over; whether there is one more, for enough sites."""
        is_first, self._has_waited = self._is_restart and not self._has_waited, True
        return is_first

    def candidates(
        self, available: AbstractSet[SiteName], *, kept: AbstractSet[SiteName], held: AbstractSet[SiteName]
    ) -> set[SiteName]:
        """Return whom a draw is made from: the pool if it is back, or else all.

        Args:
            available: sites that may be asked.
            kept: sites whose updates are in.
            held: sites in quarantine.
        """
        if self._pool is not None:
            pool = self._pool - held
            if pool <= available | kept and len(pool) >= self._plan.sites_needed:
                return set(pool & available)
            self._pool = None
        return set(available)

    def leave_out(self, site: SiteName) -> None:
        """Take in that a site was not in the draw of before a restart, and takes part from the next one on."""
        if self._pool is not None:
            self._pool -= {site}

    def forget_pool(self) -> None:
        """Take in that the attempt in progress is drawn: the next one is drawn from whoever is there then."""
        self._pool = None

    def note(self, connected: AbstractSet[SiteName], drawn: tuple[RoundNumber, Attempt] | None) -> list[RecordPresent]:
        """Return what to write down of who is there; nothing if that is known.

        Args:
            connected: sites that are connected.
            drawn: what was drawn from those noted last; None: what is drawn next is drawn from these.
        """
        if connected == self._noted:
            return []
        self._noted = frozenset(connected)
        return [RecordPresent(tuple(sorted(connected)), drawn)]
