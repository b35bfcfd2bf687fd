"""A run as TensorBoard event files, written by torch; needs the extra ``trackers``.

A folder shows one run: events of an earlier one in it are hidden. Numbers are float32, as TensorBoard has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation.errors import ConfigurationError, StorageError
from federation.tracking.tracker import parameters_of, scalars_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.rounds.history import RoundRecord

_FLUSH_S = 5
"""Seconds after which who looks on sees a round; the library's own two minutes are longer than many simulations."""


class TensorBoardTracker:
    """Writes event files into a folder; see them with ``tensorboard --logdir FOLDER``.

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
        try:
            self._writer = SummaryWriter(self._path, purge_step=0, flush_secs=_FLUSH_S)
        except OSError as error:
            raise ConfigurationError(f"tracker tensorboard cannot write {self._path}: {error.strerror}") from error
        rows = "\n".join(f"| {name} | {value} |" for name, value in parameters_of(run).items())
        self._writer.add_text("plan", f"| field | value |\n| --- | --- |\n{rows}")

    def round(self, record: RoundRecord) -> None:
        """See `Tracker.round`."""
        try:
            for name, value in scalars_of(record).items():
                self._writer.add_scalar(name, value, record.round)
        except OSError as error:
            raise StorageError(f"tracker tensorboard could not write {self._path}: {error.strerror}") from error

    def end(self, outcome: str) -> None:
        """See `Tracker.end`."""
        try:
            self._writer.add_text("outcome", outcome)
            self._writer.close()
        except OSError as error:
            raise StorageError(f"tracker tensorboard could not write {self._path}: {error.strerror}") from error
