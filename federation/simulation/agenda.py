"""What is to happen in a simulation, and when: the queue of its events, its clock and its timer.

Rules:

1. Events come in the order of (simulated time, site name); of one site at one time, in the order they were noted in.
2. The clock goes forward only. A timer passes while answers are awaited only if deadlines are enforced, and is what
   comes next, whatever its time, where nothing else is left.
3. The end of a task means something while it is the latest that was noted of its site, and an evaluation while nobody
   said that evaluations are over.
4. A site does one thing at a time, and ends what it has begun: what it is asked meanwhile begins after that, and calls
   off what it has not begun by then.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.rounds import events

if TYPE_CHECKING:
    from collections.abc import Collection

    from federation.names import Attempt, RoundNumber, SiteName

Row = tuple[float, "SiteName", int, events.Event]
"""When, of which site, the how manieth that was noted, and what."""


@dataclass(frozen=True, slots=True)
class Due:
    """The latest task of a site: number of the row in which it ends, what it is, and when it begins and ends."""

    number: int
    task: tuple[RoundNumber, Attempt]
    begins: float
    ends: float


class Agenda:
    """The events to come.

    Args:
        enforces_deadlines: rule 2.
        clock: simulated seconds at which it begins: more than 0 in a run that goes on.

    Attributes:
        clock: simulated seconds since the start of the experiment; `take`, `take_timer` and `pass_time` put it forward.
    """

    def __init__(self, *, enforces_deadlines: bool, clock: float = 0.0) -> None:
        self.clock = clock
        self._enforces_deadlines = enforces_deadlines
        self._heap: list[Row] = []
        self._sequence = itertools.count()
        self._timer: float | None = None
        self._due: dict[SiteName, Due] = {}
        self._evaluating: set[int] = set()

    # --- in

    def note(self, at: float, site: SiteName, event: events.Event) -> int:
        """Note an event; returns its number."""
        number = next(self._sequence)
        heapq.heappush(self._heap, (at, site, number, event))
        return number

    def note_end(self, at: float, site: SiteName, event: events.Event, action: events.AskTrain) -> None:
        """Note how and when a site's task ends, or the site is lost, and that it will have had its time before."""
        begins = self.free_at(site)
        self._note_overdue(at, site, action)
        self.resume_end(at, site, event, (action.round, action.attempt), begins=begins)

    def resume_end(
        self,
        at: float,
        site: SiteName,
        event: events.Event,
        task: tuple[RoundNumber, Attempt],
        *,
        begins: float = -math.inf,
    ) -> None:
        """Note how and when a task ends, such as one that an earlier run gave."""
        self._due[site] = Due(self.note(at, site, event), task, begins, at)

    def free_at(self, site: SiteName) -> float:
        """Return when a site begins what it is asked now (rule 4)."""
        due = self._due.get(site)
        if due is None or due.ends <= self.clock:
            return self.clock
        return due.begins if due.begins > self.clock else due.ends

    def call_off(self, site: SiteName) -> None:
        """Have a site not begin what it has not begun; that it is done shows when it would have."""
        due = self._due.get(site)
        if due is not None and due.begins > self.clock:
            self.resume_end(due.begins, site, events.SiteFree(site, *due.task), due.task)

    def note_evaluation(self, at: float, site: SiteName, event: events.Event) -> None:
        """Note when a site has evaluated, or failed to."""
        self._evaluating.add(self.note(at, site, event))

    def _note_overdue(self, at: float, site: SiteName, action: events.AskTrain) -> None:
        if action.overdue_s is not None and self._enforces_deadlines and at > self.clock + action.overdue_s:
            self.note(self.clock + action.overdue_s, site, events.TaskOverdue(site, action.round, action.attempt))

    def pass_time(self, seconds: float) -> None:
        """Put the clock forward: whatever comes next waited for this."""
        self.clock += seconds

    def start_timer(self, seconds: float) -> None:
        """Have time be up in so many simulated seconds."""
        self._timer = self.clock + seconds

    def stop_timer(self) -> None:
        """Forget the timer."""
        self._timer = None

    # --- out

    def take(self) -> Row | None:
        """Take the next event, the clock put forward to it; None: the timer comes first, or nothing is left."""
        is_timed = self._enforces_deadlines and self._timer is not None
        if not self._heap or (is_timed and self._timer is not None and self._heap[0][0] > self._timer):
            return None
        row = heapq.heappop(self._heap)
        self.clock = max(self.clock, row[0])
        return row

    def take_timer(self, *, passes: bool) -> bool:
        """Have the timer be up; returns whether there was one.

        Args:
            passes: its time passes, where deadlines are enforced; False: nobody waited for it.
        """
        if self._timer is None:
            return False
        if self._enforces_deadlines and passes:
            self.clock = max(self.clock, self._timer)
        self._timer = None
        return True

    def means_something(self, site: SiteName, number: int) -> bool:
        """Tell whether an end of a task, or of an evaluation, is still waited for (rule 3)."""
        return number in self._evaluating or self.ended(site, number) is not None

    def ended(self, site: SiteName, number: int) -> tuple[RoundNumber, Attempt] | None:
        """Return the site's latest task if it ends with this row; None: the row is of something else."""
        due = self._due.get(site)
        return due.task if due is not None and due.number == number else None

    def forget_evaluations(self) -> None:
        """Drop answers about a candidate that come after the deadline: they must not pass for those about the next."""
        if not self._evaluating.isdisjoint(row[2] for row in self._heap):
            self._heap = [row for row in self._heap if row[2] not in self._evaluating]
            heapq.heapify(self._heap)
        self._evaluating.clear()

    def of(self, sites: Collection[SiteName]) -> list[Row]:
        """Return what is to come of some sites, in no order."""
        return [row for row in self._heap if row[1] in sites]

    def at_work(self) -> list[tuple[Due, Row]]:
        """Return the tasks that have not ended, with the rows of their ends, in the order of the rows."""
        rows = ((self._due.get(row[1]), row) for row in self._heap)
        return sorted(
            ((due, row) for due, row in rows if due is not None and due.number == row[2]), key=lambda pair: pair[1][:3]
        )
