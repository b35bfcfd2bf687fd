"""Which trackers there are: ours by name, and plugins of the entry-point group ``federation.trackers``.

A tracker is written ``NAME`` or ``NAME:WHERE``, such as ``csv:rounds.csv``. A plugin's entry point is a callable that
takes WHERE (text, empty if not given) and returns a `Tracker`; it cannot take the name of one of ours.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError
from federation.tracking.csv_file import CsvTracker
from federation.tracking.mlflow import MlflowTracker
from federation.tracking.tensorboard import TensorBoardTracker
from federation.tracking.tracker import Tracker
from federation.tracking.wandb import WandbTracker

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "federation.trackers"
_OURS: dict[str, Callable[[str], Tracker]] = {
    "csv": CsvTracker,
    "mlflow": MlflowTracker,
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}

_OF_ONE_RUN = frozenset({"csv", "tensorboard"})
"""Those whose place is one run's; what the others are told of holds many, each by itself."""


def tracker_names() -> tuple[str, ...]:
    """Return the names there are, sorted."""
    return tuple(sorted({*_OURS, *(entry.name for entry in entry_points(group=GROUP))}))


def load_tracker(text: str) -> Tracker:
    """Return the tracker that ``NAME`` or ``NAME:WHERE`` names; its package is imported when the run starts.

    Raises:
        ConfigurationError: there is none of that name, or a plugin gives something else.
    """
    name, _, where = text.partition(":")
    if name in _OURS:
        return _OURS[name](where)
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            tracker = entry.load()(where)
            if not isinstance(tracker, Tracker):
                raise ConfigurationError(f"tracker {name!r} gives a {type(tracker).__name__}, which is no Tracker")
            return tracker
    near = difflib.get_close_matches(name, tracker_names(), 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(f"there is no tracker {name!r} here, only {', '.join(tracker_names())}{meant}")


def text_for_run(text: str, folder: Path) -> str:
    """Return ``NAME[:WHERE]`` for one of several runs, none of which may write over another.

    Args:
        text: as it was given for all of them.
        folder: run folder of this one; its name is no other's.
    """
    name, _, where = text.partition(":")
    if name not in _OF_ONE_RUN:
        return text
    place = Path(where)
    if not where:
        place = folder if name == "csv" else folder / name
    elif name == "csv" and place.suffix:
        place = place.with_name(f"{place.stem}-{folder.name}{place.suffix}")
    else:
        place = place / folder.name
    return f"{name}:{place}"
