"""How keys, certificates and lists are written: whole or not at all, and private what is private.

Rules:

1. A file appears under its name only when it is complete (temporary file beside it, fsync, rename).
2. A private file is created with mode 0600; it is never readable by others, not even for a moment.
3. What exists is not overwritten unless the caller insists: a lost authority key cannot be made again.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from federation.errors import ConfigurationError, StorageError


def write_private(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write a file that its owner alone may read.

    Raises:
        ConfigurationError: it exists and `force` is False.
        StorageError: it cannot be written.
    """
    _write(path, data, 0o600, force=force)


def write_public(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write a file that anybody may read.

    Raises:
        ConfigurationError: it exists and `force` is False.
        StorageError: it cannot be written.
    """
    _write(path, data, 0o644, force=force)


def read(path: Path, what: str) -> bytes:
    """Return the contents of `path`.

    Args:
        path: file to read.
        what: what it should hold, for the error, such as ``"signing key"``.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {what} {path}: {error.strerror}") from error


def make_private_folder(folder: Path) -> None:
    """Make `folder`, with mode 0700 if it is new.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make folder {folder}: {error.strerror}") from error


def refuse_existing(*paths: Path) -> None:
    """Check, before anything is written, that none of `paths` exists.

    Raises:
        ConfigurationError: one does.
    """
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ConfigurationError(f"{path} exists: choose another place, or replace it for good with --force")


def _write(path: Path, data: bytes, mode: int, *, force: bool) -> None:
    if not force:
        refuse_existing(path)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created with mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if mode != 0o600:
                os.chmod(temporary, mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
