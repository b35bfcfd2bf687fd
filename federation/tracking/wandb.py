"""A run in Weights & Biases, offline unless its own settings say otherwise; needs the extra ``trackers``.

Offline, nothing leaves the machine, reports of W&B's own errors included (``WANDB_ERROR_REPORTING``); ``wandb sync``
sends the folder later, by hand. What the run prints is not kept: an experiment may print what is nobody's business.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from federation.errors import ConfigurationError, StorageError
from federation.tracking.tracker import parameters_of, scalars_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from federation.rounds.history import RoundRecord

_Mode = Literal["online", "offline", "disabled"]


class WandbTracker:
    """Writes one W&B run, of the project that has the run's name.

    Args:
        path: folder for its files, made if missing; empty: the current one.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._run: Any = None
        self._errors: tuple[type[Exception], ...] = ()

    def start(self, run: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError as error:
            raise ConfigurationError("tracker wandb needs wandb: pip install 'federation[trackers]'") from error
        self._errors = (wandb.Error, OSError)
        try:
            if self._path:
                Path(self._path).mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=str(run.get("name") or "federation"),
                name=str(run.get("label") or "") or None,
                dir=self._path or None,
                mode=cast("_Mode", mode),
                config=parameters_of(run),
                reinit="create_new",
                settings=wandb.Settings(console="off"),
            )
        except (wandb.Error, OSError, ValueError) as error:
            raise ConfigurationError(
                f"tracker wandb cannot write to {self._path or 'the current folder'} in mode {mode}: {error}; "
                "give a folder, as in wandb:runs, or leave WANDB_MODE out"
            ) from error

    def round(self, record: RoundRecord) -> None:
        """See `Tracker.round`."""
        with self._translated():
            self._run.log(scalars_of(record), step=record.round)

    def end(self, outcome: str) -> None:
        """See `Tracker.end`."""
        with self._translated():
            self._run.summary["outcome"] = outcome
            self._run.finish(exit_code=0 if outcome == "completed" else 1)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise StorageError(f"tracker wandb could not write its run: {error}") from error
