"""Certificates that no longer count before they expire: a file of serial numbers, one in hexadecimal per line.

Rules:

1. ``#`` begins a comment. A missing file revokes nothing; one that goes missing later changes nothing, since forgetting
   revocations must not be as easy as deleting a file.
2. Each question looks whether the file has changed (one ``stat``), and reads it again if so: a running server needs no
   signal. Whoever subscribed is told, and ends open streams.
3. A file that is not what it should be fails closed: the question raises, and the call it was asked for is refused.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError
from federation.pki.files import make_private_folder, read, write_public

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAX_SERIAL_DIGITS = 40
"""RFC 5280: serial numbers have at most 20 octets."""
_MISSING = (0, 0, 0)


class RevocationList:
    """The revoked serial numbers in a file, as they are now.

    Questions and `reload` belong to one thread, the event loop's, where subscribers are called.

    Args:
        path: the file; may be missing.

    Raises:
        ConfigurationError: the file is not what the module says.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._serials: frozenset[int] = frozenset()
        self._mark = _MISSING
        self._subscribers: list[Callable[[], None]] = []
        self.reload()

    def __contains__(self, serial: int) -> bool:
        """Tell whether the certificate with `serial` is revoked.

        Raises:
            ConfigurationError: the file has changed into something that is not what the module says.
        """
        self.reload()
        return serial in self._serials

    def __len__(self) -> int:
        return len(self._serials)

    @property
    def serials(self) -> frozenset[int]:
        """The revoked serial numbers as last read, for the director to pass on to its aggregators."""
        return self._serials

    def reload(self) -> bool:
        """Read the file again if it has changed; tell subscribers if its content has.

        Returns:
            True if the revoked serial numbers changed.

        Raises:
            ConfigurationError: the file is not what the module says.
        """
        mark = self._look()
        if mark in (self._mark, _MISSING):
            return False
        serials = _parse(self._path)
        self._mark = mark  # only now: a broken file is read again at the next question, and refuses again
        if serials == self._serials:
            return False
        self._serials = serials
        for changed in list(self._subscribers):
            changed()
        return True

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` whenever the revoked serial numbers change; returns what ends the subscription."""
        self._subscribers.append(changed)

        def unsubscribe() -> None:
            if changed in self._subscribers:
                self._subscribers.remove(changed)

        return unsubscribe

    def _look(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._path)
        except OSError:
            return _MISSING
        return (status.st_mtime_ns, status.st_size, status.st_ino)


def revoke(path: Path, serial: int) -> bool:
    """Add a serial number to the file at `path`, made if missing.

    Returns:
        False if it was revoked already.

    Raises:
        ConfigurationError: the file is not what the module says.
        ValueError: `serial` is not positive.
        StorageError: the file cannot be written.
    """
    if serial <= 0:
        raise ValueError(f"a serial number is positive, got {serial}")
    serials = _parse(path) if path.exists() else frozenset()
    if serial in serials:
        return False
    text = path.read_text() if path.exists() else "# Revoked certificates, serial numbers in hexadecimal.\n"
    if not text.endswith("\n"):
        text += "\n"
    make_private_folder(path.parent)
    write_public(path, f"{text}{serial:x}\n".encode(), force=True)
    return True


def parse_serial(text: str) -> int:
    """Read a serial number in hexadecimal.

    Raises:
        ConfigurationError: it is none.
    """
    digits = text.strip().replace(":", "").lower()
    if not digits or len(digits) > _MAX_SERIAL_DIGITS or not all(digit in "0123456789abcdef" for digit in digits):
        raise ConfigurationError(f"{text.strip()[:80]!r} is not a serial number: up to 40 hexadecimal digits")
    return int(digits, 16)


def _parse(path: Path) -> frozenset[int]:
    serials = set()
    lines = read(path, "revocation list").decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if entry:
            try:
                serials.add(parse_serial(entry))
            except ConfigurationError as error:
                raise ConfigurationError(f"{path}, line {number}: {error}") from error
    return frozenset(serials)
