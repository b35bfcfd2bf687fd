"""Several trackers as one: told in the order given, and each that was started is ended, however the run ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from federation.rounds.history import RoundRecord
    from federation.tracking.tracker import Tracker


class Together:
    """The trackers of one run.

    Args:
        trackers: who is told; none is fine.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers
        self._started: list[Tracker] = []

    def start(self, run: Mapping[str, Any], records: Iterable[RoundRecord] = ()) -> None:
        """Begin, and show the rounds that an earlier call committed: each tracker has the whole run.

        Raises:
            ConfigurationError: a place cannot be written, or a package is not installed.
        """
        for tracker in self._trackers:
            tracker.start(run)
            self._started.append(tracker)
        for record in records:
            self.round(record)

    def round(self, record: RoundRecord) -> None:
        """See `Tracker.round`."""
        for tracker in self._started:
            tracker.round(record)

    def end(self, outcome: str) -> None:
        """End those that are not ended yet; what one of them raises is raised when all were told."""
        failure: Exception | None = None
        while self._started:
            try:
                self._started.pop(0).end(outcome)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
