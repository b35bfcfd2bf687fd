"""The private folder of tensor files that collaborator and trainer share.

Rules:

1. Files are made by the collaborator, preallocated, and used again every round: touching fresh pages is twenty times
   slower than writing over old ones, and a full disk is noticed before anything is fetched.
2. The trainer can write here, so nothing here is believed: files are opened without following links, must be regular
   and of the size the plan gives, and what is read is checked (`protection`).
3. Two slots hold models, so that the model of the next round can come while the last is still wanted; a slot whose
   digest is asked for again is not fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import TaskError
from federation.storage.disk import preallocate, translated
from federation.tensors.digest import PayloadHash

if TYPE_CHECKING:
    from pathlib import Path

    from federation.names import Digest, PayloadName

DELTA = "delta.bin"
BUFFERS = "buffers.bin"
OPTIMIZER_IN = "optimizer-in.bin"
OPTIMIZER_OUT = "optimizer-out.bin"
BASE = "base.bin"
STEP, STEP_BUFFERS = "step.bin", "step-buffers.bin"
_RECEIVED = "slot-{}.bin"
_SENT = "up-{}.bin"
_SLOTS = ("model-0.bin", "model-1.bin")
_UPLOADS = {"delta": DELTA, "buffers": BUFFERS, "optimizer": OPTIMIZER_OUT}
_HASH_BYTES = 1 << 20


@dataclass(slots=True)
class _Slot:
    path: Path
    digest: Digest | None = None
    used: int = 0


class Exchange:
    """The folder and what the collaborator knows of its files.

    Args:
        folder: made if missing, mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._slots = [_Slot(folder / name) for name in _SLOTS]
        self._single: dict[str, Digest] = {}
        self._turn = 0

    def path(self, name: str) -> Path:
        """Path of one of the fixed files."""
        return self.folder / name

    def received(self, name: PayloadName) -> str:
        """Name of the file for what an algorithm broadcasts."""
        return _RECEIVED.format(name)

    def sent(self, name: PayloadName) -> str:
        """Name of the file a payload of an update is written to."""
        return _UPLOADS.get(name) or _SENT.format(name)

    def held_model(self, digest: Digest) -> Path | None:
        """Return the file that holds this model, or None; it counts as used now."""
        for slot in self._slots:
            if slot.digest == digest:
                self._turn += 1
                slot.used = self._turn
                return slot.path
        return None

    @property
    def has_unknown_models(self) -> bool:
        """Whether an earlier process may have left a model that this one has not looked at."""
        return any(slot.used == 0 for slot in self._slots)

    def free_model_slot(self) -> Path:
        """Return the slot used longest ago; what it held is forgotten."""
        slot = min(self._slots, key=lambda each: each.used)
        slot.digest = None
        return slot.path

    def keep_model(self, path: Path, digest: Digest) -> None:
        """Note that a slot now holds this model, verified."""
        for slot in self._slots:
            if slot.path == path:
                self._turn += 1
                slot.digest, slot.used = digest, self._turn

    def holds(self, name: str, digest: Digest) -> bool:
        """Tell whether a fixed file holds this payload, verified by this process."""
        return self._single.get(name) == digest

    def keep(self, name: str, digest: Digest) -> None:
        """Note that a fixed file now holds this payload, verified."""
        self._single[name] = digest

    def forget(self, name: str) -> None:
        """Note that a fixed file is about to change."""
        self._single.pop(name, None)

    def find_held(self, name: str, digest: Digest, nbytes: int) -> bool:
        """Look whether an earlier process left this payload in a fixed file; reads it all, so call it in a thread."""
        if not self.holds(name, digest) and _file_digest(self.path(name), nbytes) == digest:
            self.keep(name, digest)
        return self.holds(name, digest)

    def find_held_model(self, digest: Digest, nbytes: int) -> Path | None:
        """The same for models: the first slot that holds it, after reading slots nothing is known of."""
        known = self.held_model(digest)
        if known is not None:
            return known
        for slot in self._slots:
            if slot.used == 0 and slot.digest is None and _file_digest(slot.path, nbytes) == digest:
                self.keep_model(slot.path, digest)
                return slot.path
        return None


def open_for_write(path: Path, nbytes: int) -> int:
    """Open an exchange file for writing, made and preallocated to exactly `nbytes`; the caller closes the descriptor.

    Raises:
        DiskFullError: no room; the file is no longer than before, so that the next try does not take it for reserved.
        StorageError: something that is not a regular file lies in its place and cannot be removed.
    """
    with translated(path, nbytes):
        try:
            descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        except TaskError:
            path.unlink()  # a link or device the trainer left; the next open makes a file
            descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        with translated(path, nbytes):
            if os.fstat(descriptor).st_size > nbytes:
                os.ftruncate(descriptor, nbytes)
        preallocate(descriptor, nbytes, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_result(path: Path, nbytes: int) -> int:
    """Open a file the trainer wrote, for reading; the caller closes the descriptor.

    Raises:
        TaskError: it is missing, no regular file, or not of the size the plan gives (error class ``WrongResult``).
    """
    try:
        descriptor = _open(path, os.O_RDONLY)
    except OSError as error:
        raise TaskError("WrongResult", traceback=f"{path.name}: {error.strerror}") from error
    got = os.fstat(descriptor).st_size
    if got != nbytes:
        os.close(descriptor)
        raise TaskError("WrongResult", traceback=f"{path.name} has {got} bytes, the plan's schema needs {nbytes}")
    return descriptor


def open_encoded(path: Path, most_bytes: int) -> tuple[int, int]:
    """Open an encoded payload the trainer wrote; returns the descriptor, which the caller closes, and its size, bytes.

    Raises:
        TaskError: it is missing, no regular file, empty, or larger than any the plan's codec makes (error class
            ``WrongResult``).
    """
    try:
        descriptor = _open(path, os.O_RDONLY)
    except OSError as error:
        raise TaskError("WrongResult", traceback=f"{path.name}: {error.strerror}") from error
    got = os.fstat(descriptor).st_size
    if not 1 <= got <= most_bytes:
        os.close(descriptor)
        raise TaskError(
            "WrongResult", traceback=f"{path.name} has {got} bytes, the plan's codec makes 1 to {most_bytes}"
        )
    return descriptor, got


def _open(path: Path, flags: int) -> int:
    # Without O_NOFOLLOW a trainer could plant a link to the site's key and have it sent as its "update"; without
    # O_NONBLOCK it could leave a pipe that nobody ever opens at the other end.
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise TaskError("WrongResult", traceback=f"{path.name} is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TaskError("WrongResult", traceback=f"{path.name} is not a regular file")
    return descriptor


def _file_digest(path: Path, nbytes: int) -> Digest | None:
    with contextlib.suppress(TaskError):
        descriptor = open_result(path, nbytes)
        try:
            running = PayloadHash()
            buffer = bytearray(_HASH_BYTES)
            view = memoryview(buffer)
            offset = 0
            while offset < nbytes:
                count = os.preadv(descriptor, [view], offset)
                if count == 0:
                    return None
                running.update(view[:count])
                offset += count
            return running.digest()
        finally:
            os.close(descriptor)
    return None
