"""One owner at a time of something that lies in files: who owns it holds a lock on a file of its own beside it.

Rules:

1. A second owner is refused at once, and told who the first is: what the first wrote into the file.
2. The kernel lets go of the lock when the owner's process ends, however it ends: a file that is left means nothing.
3. Where there is no `flock` (Windows) nobody is refused, as in `federation.storage.disk`.
"""

from __future__ import annotations

import contextlib
import os
import platform
from typing import TYPE_CHECKING

from federation.errors import StorageError
from federation.storage.disk import translated, try_lock

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES = 1000
"""Of what an owner says about itself."""


class HeldError(StorageError):
    """Another holds it.

    Attributes:
        holder: who, in words, such as ``process 17 on beacon``.
    """

    def __init__(self, place: Path, holder: str) -> None:
        super().__init__(f"{place} is held by {holder}; one owner at a time, end the other first")
        self.holder = holder


def take_lock(place: Path, *, doing: str = "") -> int:
    """Become the owner; returns the open lock file, which the owner closes when it is done.

    Args:
        place: the lock file; made if missing, in a folder that is there.
        doing: what the owner does, for who is refused.

    Raises:
        HeldError: another process, or another part of this one, is the owner.
        StorageError: the disk failed, or its file system has no locks.
    """
    with translated(place):
        while True:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if not try_lock(descriptor, exclusive=True):
                    raise HeldError(place, _printable(os.read(descriptor, _MOST_BYTES)) or "another process")
                if os.fstat(descriptor).st_nlink:
                    os.ftruncate(descriptor, 0)
                    who = f"process {os.getpid()} on {platform.node()}" + (f" ({doing})" if doing else "")
                    os.write(descriptor, who.encode()[:_MOST_BYTES])
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # `drop_lock` of an earlier owner took the file away between open and lock


def drop_lock(place: Path, descriptor: int) -> None:
    """Stop being the owner, and take the file away; who has opened it meanwhile finds that it is gone."""
    with contextlib.suppress(OSError):  # rule 2: it may as well stay, and Windows removes no open file
        place.unlink()
    os.close(descriptor)


def _printable(text: bytes) -> str:
    return "".join(letter for letter in text.decode(errors="replace") if letter.isprintable())
