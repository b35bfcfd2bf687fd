"""Which state an experiment may go to next: one table, and nothing else in the project decides it.

Rules, in order:

1. ``SUBMITTED → QUEUED → RUNNING ⇄ PAUSED → COMPLETED | FAILED | CANCELLED``; the table below is the whole truth.
2. Whatever has not ended may fail or be cancelled; only what runs may complete.
3. Terminal states are immutable: they have no successor.
4. Asking for the state an experiment is already in changes nothing and is no error, so that every step can be repeated.

Pure: the store performs a transition as a compare-and-set on the state this module was asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import ConflictError
from federation.names import ExperimentState

if TYPE_CHECKING:
    from collections.abc import Mapping

_S = ExperimentState

TRANSITIONS: Mapping[ExperimentState, frozenset[ExperimentState]] = {
    _S.SUBMITTED: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.PAUSED, _S.COMPLETED, _S.FAILED, _S.CANCELLED}),
    # PAUSED may complete: the aggregator's "running again" can be lost with its connection just before the last round.
    _S.PAUSED: frozenset({_S.RUNNING, _S.COMPLETED, _S.FAILED, _S.CANCELLED}),
    _S.COMPLETED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}
"""From each state, the states that may follow it."""

ACTIVE = frozenset({_S.RUNNING, _S.PAUSED})
"""States in which an experiment has an aggregator and takes a slot."""

OPEN = frozenset(state for state in _S if not state.is_terminal)
"""States in which an experiment is not over."""

MAX_REASON = 2000
"""Characters of a reason that are kept; reasons are for people and come, in part, from peers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A state change that was asked for.

    Attributes:
        to: state to enter.
        reason: why, for people; cut to `MAX_REASON` characters.
        actor: SPIFFE id of who asked, or the director's own.
        at: Unix time, seconds.
        degraded: on COMPLETED, some round had fewer contributions than planned.
    """

    to: ExperimentState
    reason: str
    actor: str
    at: float
    degraded: bool = False

    def __post_init__(self) -> None:
        if len(self.reason) > MAX_REASON:
            object.__setattr__(self, "reason", self.reason[: MAX_REASON - 1] + "…")


def is_allowed(current: ExperimentState, to: ExperimentState) -> bool:
    """Tell whether `to` may follow `current`; staying is not a transition."""
    return to in TRANSITIONS[current]


def check(experiment: str, current: ExperimentState, to: ExperimentState) -> bool:
    """Return whether anything is left to do to bring the experiment to `to`: False if it is there already.

    Raises:
        ConflictError: the table does not allow it.
    """
    if current is to:
        return False
    if not is_allowed(current, to):
        can = ", ".join(sorted(state.value for state in TRANSITIONS[current]))
        why = f"; it can become {can}" if can else ": it has ended"
        raise ConflictError(f"experiment {experiment} is {current.value} and cannot become {to.value}{why}")
    return True
