"""What a collaborator remembers of its progress across its own death.

The epoch is durable, power loss included: it is what keeps a superseded aggregator from being obeyed. The rest only
has to survive ``kill -9``, so it is renamed into place without waiting for the disk: after power loss a round is at
worst done again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from federation.collaborator.ordering import BEGINNING, Asking, Progress
from federation.errors import StorageError
from federation.names import Attempt, Epoch, RoundNumber
from federation.storage.disk import write_atomically

if TYPE_CHECKING:
    from pathlib import Path


class StateFile:
    """`Progress` in a file.

    Args:
        path: JSON file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Progress:
        """Return what was saved, or a fresh progress if nothing was.

        Raises:
            StorageError: the file is there but not readable or not ours.
        """
        try:
            document = json.loads(self._path.read_bytes())
            return Progress(
                epoch=Epoch(_number(document["epoch"])),
                committed=RoundNumber(_number(document["committed"])),
                newest=_asking(document["newest"]),
                settled=_asking(document["settled"]),
            )
        except FileNotFoundError:
            return BEGINNING
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self._path} is not a collaborator's state: {error}; the site must rejoin") from error

    def save(self, progress: Progress, *, durable: bool) -> None:
        """Replace what was saved.

        Args:
            progress: what to save.
            durable: wait until it survives power loss; otherwise it survives the death of this process.

        Raises:
            StorageError: the disk refused.
        """
        write_atomically(self._path, json.dumps(asdict(progress)).encode(), durable=durable)


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a number from 0 on")
    return value


def _asking(document: dict[str, object]) -> Asking:
    return Asking(round=RoundNumber(_number(document["round"])), attempt=Attempt(_number(document["attempt"])))
