"""A run as TensorBoard event files, written by torch; needs the extra ``trackers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation.errors import ConfigurationError
from federation.tracking.tracker import parameters_of, scalars_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.rounds.history import RoundRecord


class TensorBoardTracker:
    """Writes event files into a folder.

    Args:
        path: the folder, ``tensorboard`` by default.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path or "tensorboard"
        self._writer: Any = None

    def start(self, run: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigurationError(
                "tracker tensorboard needs torch and tensorboard: pip install 'federation[torch,trackers]'"
            ) from error
        self._writer = SummaryWriter(self._path)
        rows = "\n".join(f"| {name} | {value} |" for name, value in parameters_of(run).items())
        self._writer.add_text("plan", f"| field | value |\n| --- | --- |\n{rows}")

    def round(self, record: RoundRecord) -> None:
        """See `Tracker.round`."""
        for name, value in scalars_of(record).items():
            self._writer.add_scalar(name, value, record.round)

    def end(self, outcome: str) -> None:
        """See `Tracker.end`."""
        self._writer.add_text("outcome", outcome)
        self._writer.close()
