"""What the command writes for people: one error for whatever the file system says against it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from federation.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator


def target_of(text: str, name: str) -> Path:
    """Return the file that `text` asks for: a file, or a folder for one called `name`.

    What ends like a folder (``models/``) is one, and is made if it is not there.

    Raises:
        StorageError: it cannot be made.
    """
    path = Path(text)
    if text.endswith(("/", os.sep)):
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
    return path / name if path.is_dir() else path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write `path`, a file or a folder of ours, within this.

    Raises:
        StorageError: it cannot be written; names it.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
