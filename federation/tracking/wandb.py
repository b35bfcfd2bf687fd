"""A run in Weights & Biases, offline unless its own settings say otherwise; needs the extra ``trackers``.

Offline, nothing leaves the machine: ``wandb sync`` sends the folder later, by hand.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, cast

from federation.errors import ConfigurationError
from federation.tracking.tracker import parameters_of, scalars_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.rounds.history import RoundRecord

_Mode = Literal["online", "offline", "disabled"]


class WandbTracker:
    """Writes one W&B run.

    Args:
        path: folder for its files; empty: the current one.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._run: Any = None

    def start(self, run: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        try:
            import wandb
        except ImportError as error:
            raise ConfigurationError("tracker wandb needs wandb: pip install 'federation[trackers]'") from error
        self._run = wandb.init(
            project=str(run.get("name") or "federation"),
            dir=self._path or None,
            mode=cast("_Mode", os.environ.get("WANDB_MODE", "offline")),
            config=parameters_of(run),
        )

    def round(self, record: RoundRecord) -> None:
        """See `Tracker.round`."""
        self._run.log(scalars_of(record), step=record.round)

    def end(self, outcome: str) -> None:
        """See `Tracker.end`."""
        self._run.summary["outcome"] = outcome
        self._run.finish(exit_code=0 if outcome == "completed" else 1)
