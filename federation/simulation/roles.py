"""What the engine of a simulation asks of others: the round machine, a profiler, and whoever writes hostile updates."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federation.names import RoundNumber, SiteName
    from federation.rounds import events
    from federation.rounds.events import Phase
    from federation.simulation.bench import TrainAnswer
    from federation.tensors.buffers import Array


class Machine(Protocol):
    """What the engine asks of a round machine, synchronous or not."""

    phase: Phase
    round: RoundNumber
    connected: set[SiteName]

    @property
    def asked(self) -> tuple[SiteName, ...]:
        """Sites that were asked and are not settled."""
        ...

    def start(self) -> list[events.Action]:
        """Return the first actions."""
        ...

    def foresee(self) -> tuple[SiteName, ...]:
        """Return the sites that the next round will ask if nothing comes between; empty: that cannot be said."""
        ...

    def step(self, event: events.Event) -> list[events.Action]:
        """Take in one event and return what to do."""
        ...


class Spans(Protocol):
    """Where time of the engine's parts is noted, if anybody profiles."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """Return a context that lasts as long as the part."""
        ...


class Tampering(Protocol):
    """Comes between what sites learnt and what is admitted: `federation.simulation.hostile`.

    Attributes:
        sites: those whose updates it writes; what is wrong with them shows at admission only.
    """

    sites: frozenset[SiteName]

    def tamper(
        self,
        round_number: RoundNumber,
        answers: Sequence[TrainAnswer],
        slots: Mapping[SiteName, int],
        rule: Callable[[Mapping[SiteName, Array]], Array],
    ) -> Sequence[TrainAnswer]:
        """Write updates into their slots, and return the answers as they are now.

        Args:
            round_number: the round.
            answers: of every site asked together, in any order.
            slots: where the update of each lies.
            rule: the aggregate of those sites that trained, as the rule in force makes it of a vector of each.

        Raises:
            PlanError: it cannot be done; the run fails.
        """
        ...


class NoSpans:
    """Notes nothing."""

    _nothing: AbstractContextManager[object] = nullcontext()

    def span(self, name: str) -> AbstractContextManager[object]:
        """See `Spans.span`."""
        return self._nothing
