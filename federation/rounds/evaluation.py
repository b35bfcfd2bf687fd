"""Who evaluates a candidate, who is waited for, and why some have no say: the bookkeeping of one phase. Pure.

Rules:

1. A site that was late does one thing at a time and cannot be interrupted, so it is *at work* until it is heard of:
   it sends what is refused because it is late, or says that it failed; it answers a later task; or it says in a new
   session what it is at, or that it is at nothing.
2. All that are asked may answer while the phase lasts. Those at work are not waited for; one that is heard of is
   waited for from then on.
3. Whoever was asked and has not answered when the phase ends has a reason in `missing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.names import Attempt, RoundNumber, SiteName
    from federation.rounds.events import SiteEvaluated

    Task = tuple[RoundNumber, Attempt]

NO_ANSWER = "no answer in time"
"""Why a site that was waited for until the deadline has no say."""


class AtWork:
    """Sites that are still at a task whose attempt is closed."""

    def __init__(self) -> None:
        self._tasks: dict[SiteName, Task] = {}
        self._since: dict[SiteName, RoundNumber] = {}

    def __contains__(self, site: SiteName) -> bool:
        return site in self._tasks

    def note(self, site: SiteName, task: Task) -> None:
        """Note which task a site is at, or has before it: the newest it was asked."""
        self._tasks[site] = task
        self._since.setdefault(site, task[0])

    def free(self, site: SiteName, task: tuple[RoundNumber, Attempt | None] | None = None) -> None:
        """Note that a site was heard of.

        Args:
            site: which.
            task: what it is done with: an older one than it was asked last leaves it at work. An attempt of None
                stands for any of the round. None: with all.
        """
        if site not in self._tasks:
            return
        number, attempt = self._tasks[site]
        done, of_attempt = task or (number, None)
        if (done, attempt if of_attempt is None else of_attempt) >= (number, attempt):
            del self._tasks[site], self._since[site]
        else:
            self._since[site] = number

    def reason(self, site: SiteName) -> str:
        """Return what to say of a site at work.

        Raises:
            KeyError: it is not.
        """
        return f"still at work since round {self._since[site]}"


class Evaluation:
    """One candidate's evaluation.

    Args:
        sites: who is asked.
        at_work: who is not waited for; it changes meanwhile.

    Attributes:
        answers: what sites answered.
        missing: why others have not, as far as that is known.
    """

    def __init__(self, sites: Iterable[SiteName], at_work: AtWork) -> None:
        self.answers: dict[SiteName, SiteEvaluated] = {}
        self.missing: dict[SiteName, str] = {}
        self._open = set(sites)
        self._at_work = at_work

    def is_open(self, site: SiteName) -> bool:
        """Whether an answer of this site would be taken."""
        return site in self._open

    @property
    def is_over(self) -> bool:
        """Whether nobody is waited for any more."""
        return all(site in self._at_work for site in self._open)

    def take(self, event: SiteEvaluated) -> None:
        """Take an answer."""
        self._open.discard(event.site)
        self.answers[event.site] = event

    def set_aside(self, site: SiteName, reason: str) -> None:
        """Note that a site will not answer, and why."""
        self._open.discard(site)
        self.missing[site] = reason

    def end(self) -> None:
        """Take no more answers."""
        for site in sorted(self._open):
            self.set_aside(site, self._at_work.reason(site) if site in self._at_work else NO_ANSWER)
