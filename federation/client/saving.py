"""What the command writes for people: one error for whatever the file system says against it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from federation.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
