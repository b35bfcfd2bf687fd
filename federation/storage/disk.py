"""The few disk operations everything here is made of, and the one place where their failures become our errors.

Rules:

1. Offsets are 64 bits; a short read or write is continued, never ignored.
2. A full disk is `DiskFullError` with path, needed and free bytes, found when space is reserved where that is possible;
   `federation.runtime.room` decides which refusals mean it.
3. Small files are written atomically: a reader, or a crash, sees the new one whole or the old one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from typing import TYPE_CHECKING, Protocol

from federation.errors import StorageError
from federation.runtime.room import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where only clients run: they share no files
    fcntl = None  # type: ignore[assignment]

Buffer = bytes | bytearray | memoryview
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE: begin, and do not wait."""


class Readable(Protocol):
    """Bytes that can be read at any offset: a payload in the spool, the data section of a model file."""

    @property
    def nbytes(self) -> int:
        """Size, bytes."""
        ...

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the bytes from `offset` on.

        Raises:
            StorageError: they are not all there, or the disk failed.
        """
        ...


@contextlib.contextmanager
def translated(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError inside into a StorageError about `path`.

    Args:
        path: file concerned.
        needed_bytes: room the operation needs, for the error of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise refusal(error, path, needed_bytes=needed_bytes) from error


def preallocate(descriptor: int, nbytes: int, path: Path) -> None:
    """Make the file at least `nbytes` long with its blocks reserved, so that no later write inside can find it full.

    Raises:
        DiskFullError: there is no room; the file is as before.
        StorageError: the disk failed.
    """
    with translated(path, nbytes):
        size = os.fstat(descriptor).st_size
        if size >= nbytes:
            return
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, size, nbytes - size)
            else:
                os.ftruncate(descriptor, nbytes)
        except OSError as error:
            # A failed reservation may leave the blocks it did get.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # some network and union file systems
                os.ftruncate(descriptor, nbytes)
                return
            raise


def pwrite_all(descriptor: int, view: Buffer, offset: int, path: Path) -> None:
    """Write all of `view` at `offset`.

    Raises:
        DiskFullError: there is no room.
        StorageError: the disk failed.
    """
    left = memoryview(view).cast("B")
    with translated(path, left.nbytes):
        while left.nbytes:
            written = os.pwrite(descriptor, left, offset)
            left = left[written:]
            offset += written


def write_over(path: Path, line: bytes) -> None:
    """Write a line over what a file begins with; what a longer one before it leaves behind is behind the line's end.

    Raises:
        DiskFullError: there is no room.
        StorageError: the disk failed.
    """
    with translated(path, len(line)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            pwrite_all(descriptor, line, 0, path)
        finally:
            os.close(descriptor)


def begin_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the system begin to write a range to the disk, so that an fsync has less to wait for.

    Promises nothing: where it is not known or fails, the fsync does it all, and says what is wrong.
    """
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if begin is not None:
        begin(descriptor, ctypes.c_int64(offset), ctypes.c_int64(nbytes), _WRITE)


def pread_into(descriptor: int, view: Buffer, offset: int, path: Path) -> None:
    """Fill all of `view`, which must be writable, from `offset`.

    Raises:
        StorageError: the file ends before, or the disk failed.
    """
    left = memoryview(view).cast("B")
    with translated(path):
        while left.nbytes:
            got = os.preadv(descriptor, [left], offset)
            if not got:
                raise StorageError(f"{path}: ends at byte {offset}, {left.nbytes} bytes before what was to be read")
            left = left[got:]
            offset += got


def try_lock(descriptor: int, *, exclusive: bool) -> bool:
    """Lock an open file against other openers, of this process too, until it is closed; never waits.

    Returns:
        False if somebody holds a lock that forbids it. A second call changes the kind of lock.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_content(descriptor: int, path: Path) -> None:
    """Make what was written into a file durable; of what the file system notes about it, what is needed to read it.

    Raises:
        StorageError: the disk failed.
    """
    with translated(path):
        getattr(os, "fdatasync", os.fsync)(descriptor)  # a file that is only written over needs no journal commit


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable.

    Raises:
        StorageError: the disk failed.
    """
    if os.name != "posix":  # Windows cannot open a folder, and needs no such call
        return
    with translated(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a small file whole or not at all.

    Args:
        path: where; its folder exists. Readable by this user only.
        data: content.
        durable: whether it must survive a power loss at once; without, only a killed process.

    Raises:
        StorageError: the disk refused; the old file is as before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with translated(path, len(data)):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                pwrite_all(descriptor, data, 0, path)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)
