"""Which refusals of the disk mean that there is no room, and what they are to our callers.

1. Want of room goes by three names: no space left, a quota used up, a file that may not grow further. Decided here for
   everybody, because what waits for room, or starts a child again, must not depend on who met the full disk.
2. It is `DiskFullError`; every other refusal is a plain `StorageError`, whose text is its caller's.
"""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING

from federation.errors import DiskFullError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_want_of_room(error: OSError) -> bool:
    """Tell whether the system refused because there is no room, by whatever name."""
    return error.errno in _NUMBERS


def free_bytes(path: Path) -> int:
    """Return the bytes free to this process on the file system of `path`, or of its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def refusal(error: OSError, path: Path, text: str = "", *, needed_bytes: int = 0) -> StorageError:
    """Return what a refusal of the disk is to our callers: want of room is told from all else.

    Args:
        error: the system's.
        path: what was to be written or read.
        text: what to say of the path where it is not want of room; the system's reason follows.
        needed_bytes: how much was to be written; 0 if that is not known.
    """
    if is_want_of_room(error):
        return DiskFullError(path, needed_bytes, free_bytes(path))
    return StorageError(f"{path}{' ' if text else ''}{text}: {error.strerror or error}")
