"""What a collaborator remembers of its progress across its own death.

The epoch is durable, power loss included: it is what keeps a superseded aggregator from being obeyed. The rest only
has to survive ``kill -9``, so nothing waits for the disk: after power loss a round is at worst done again.

The file has two places of one sector each, written over in turn, since making and renaming a file each round would cost
ten times as much. Each has a CRC-32 and a number that counts up: a write that was torn loses itself and not the one
before it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from federation.collaborator.ordering import BEGINNING, Asking, Progress
from federation.errors import StorageError
from federation.names import Attempt, Epoch, RoundNumber
from federation.storage.checked_lines import checked, text_of
from federation.storage.disk import pwrite_all, sync_folder, translated

if TYPE_CHECKING:
    from pathlib import Path

_PLACE_BYTES = 512


class StateFile:
    """`Progress` in a file.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: int | None = None  # number of the newest place; unknown before the file was read

    def load(self) -> Progress:
        """Return what was saved, or a fresh progress if nothing was.

        Raises:
            StorageError: the file is there but not readable or not ours.
        """
        try:
            content = self._path.read_bytes()
            saved, document = max(_read_places(content), key=lambda place: place[0])
            progress = Progress(
                epoch=Epoch(_number(document["epoch"])),
                committed=RoundNumber(_number(document["committed"])),
                newest=_asking(document["newest"]),
                settled=_asking(document["settled"]),
                evaluated=RoundNumber(_number(document.get("evaluated", 0))),
            )
        except FileNotFoundError:
            self._saved = 0
            return BEGINNING
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self._path} is not a collaborator's state: {error}; the site must rejoin") from error
        self._saved = saved
        return progress

    def save(self, progress: Progress, *, durable: bool) -> None:
        """Replace what was saved.

        Args:
            progress: what to save.
            durable: wait until it survives power loss; otherwise it survives the death of this process.

        Raises:
            StorageError: the disk refused, and what was saved before is as it was; or the file is not ours.
        """
        if self._saved is None:
            self.load()
        number = (self._saved or 0) + 1
        text = json.dumps({"saved": number, **asdict(progress)}).encode()
        place = checked(text).ljust(_PLACE_BYTES - 1) + b"\n"
        with translated(self._path):
            is_new = durable and not self._path.exists()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                pwrite_all(descriptor, place, number % 2 * _PLACE_BYTES, self._path)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if is_new:
            sync_folder(self._path.parent)
        self._saved = number


def _read_places(content: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Return the number and the document of each place that is whole."""
    places = []
    for start in range(0, len(content), _PLACE_BYTES):
        text = text_of(content[start : start + _PLACE_BYTES].rstrip(b" \n"))
        if text is not None:
            document = json.loads(text)
            places.append((_number(document["saved"]), document))
    if not places:
        raise ValueError("neither of its places is whole")
    return places


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a number from 0 on")
    return value


def _asking(document: dict[str, object]) -> Asking:
    return Asking(round=RoundNumber(_number(document["round"])), attempt=Attempt(_number(document["attempt"])))
