"""Who has a run folder: one run at a time, from before its experiment is loaded until its last file is written.

Two runs in one folder would each cut back the history of the other and remove its checkpoints, and a run downloaded
into one would be half the one and half the other. So whoever runs, or downloads, holds the lock ``running`` in it
(`federation.storage.lock_files`), and a second is refused at once. A folder that cannot be written is not locked:
nothing can happen in it but reading a run that has ended.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from federation.errors import ConflictError
from federation.storage.disk import translated
from federation.storage.lock_files import HeldError, drop_lock, take_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_FILE = "running"


@contextlib.contextmanager
def owned(folder: Path, *, command: str = "") -> Iterator[None]:
    """Have a run folder to oneself; it is made, and is gone again if nothing came to lie in it.

    Args:
        folder: the run folder.
        command: what runs in it, for who is refused.

    Raises:
        ConflictError: another run has it; the text says which.
        StorageError: it cannot be made or locked.
    """
    with translated(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        yield
        return
    place = folder / LOCK_FILE
    try:
        lock = take_lock(place, doing=command)
    except HeldError as error:
        raise ConflictError(
            f"run folder {folder} is in use by {error.holder}: wait until it has ended, or end it (Ctrl-C there keeps "
            "a checkpoint, from which the same command goes on), or choose another folder"
        ) from error
    try:
        yield
    finally:
        drop_lock(place, lock)
        if is_new:
            with contextlib.suppress(OSError):  # something lies in it
                folder.rmdir()


def check_free(folder: Path) -> None:
    """Check that nobody runs in a folder, which need not exist.

    Raises:
        ConflictError: somebody does; the text says who.
        StorageError: it cannot be locked.
    """
    if folder.exists():
        with owned(folder):
            pass
