"""A file that is written over every round, mapped once: what is computed into it is there, and no call copies it.

Rules, in order:

1. It is mapped as long as it is the same file of the same size; another one under its name is mapped anew.
2. To write where a mapping finds no room ends the process without a word. So a file is mapped only where all its bytes
   have their place on the disk already, and where there is as much room again, as a file system may need that never
   writes a block over. Elsewhere it is not mapped, and a call that writes says what is wrong.
3. It is for who alone may shorten the file, or trusts those who may.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from federation.tensors.buffers import Array

_BLOCK_BYTES = 512
"""What ``st_blocks`` counts in."""


class KeptFile:
    """Keeps one file mapped; given up with the object."""

    def __init__(self) -> None:
        self._file: tuple[int, int, int] | None = None
        self._bytes: Array = np.empty(0, np.uint8)

    def bytes_of(self, descriptor: int, nbytes: int) -> Array | None:
        """Return the first bytes of a file, to be written; None where it should rather be written by calls.

        Args:
            descriptor: of the file, open for reading and writing; it may be closed afterwards.
            nbytes: how many, more than 0.
        """
        status = os.fstat(descriptor)
        if status.st_size < nbytes or getattr(status, "st_blocks", 0) * _BLOCK_BYTES < nbytes:
            return None
        disk = os.fstatvfs(descriptor)
        if disk.f_bavail * disk.f_frsize < nbytes:
            return None
        file = (status.st_dev, status.st_ino, status.st_size)
        if file != self._file:
            self._file, self._bytes = None, np.empty(0, np.uint8)
            try:
                mapped = mmap.mmap(descriptor, status.st_size)
            except OSError:  # not every file system can
                return None
            self._file, self._bytes = file, np.frombuffer(mapped, np.uint8)
        return self._bytes[:nbytes]
