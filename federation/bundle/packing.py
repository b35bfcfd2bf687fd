"""The archive: a folder as one deterministic zip file, and back, believing nothing the archive says of itself.

Rules, in order:

1. Packing takes regular files only. A link is refused rather than followed, so that nothing from outside the folder
   travels by accident; hidden files, ``__pycache__`` and ``*.pyc`` stay at home.
2. Entries are stored, not compressed: equal folders give equal archives, and an archive cannot unpack to more than it
   is (no zip bombs). Any other entry is refused on the way in.
3. Unpacking believes the manifest alone. The archive's digest is checked first, then each entry's name, kind and size
   against the manifest, then each file's digest while it is written.
4. All is written into a temporary folder and renamed into place, so that a folder that exists is whole and verified.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.bundle.manifest import FileEntry, Manifest
from federation.bundle.paths import check_path, check_paths
from federation.errors import BundleError, PlanError, StorageError
from federation.names import Digest
from federation.runtime.room import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

ENTRY_POINT = "experiment.py"
_BLOCK_BYTES = 1024 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a bundle may hold: `files` in number, `total_bytes` unpacked.

    A bundle is code and small tables; models travel as tensors and data stays at the silos.
    """

    files: int = 1000
    total_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What packing gave: the `files`, and `digest` (SHA-256) and `nbytes` of the archive."""

    files: tuple[FileEntry, ...]
    digest: Digest
    nbytes: int


def pack(folder: Path, archive: Path, limits: Limits | None = None) -> Packed:
    """Write the experiment folder to `archive`, deterministically.

    Args:
        folder: holds ``experiment.py`` and what it imports.
        archive: file to write; replaced if it exists.
        limits: what silos accept by default.

    Raises:
        PlanError: the folder has no ``experiment.py``, holds a link or special file, a path silos refuse, or too much.
        StorageError: a file cannot be read or the archive not written.
    """
    limits = limits or Limits()
    paths = sorted(_walk(folder, folder))
    if ENTRY_POINT not in paths:
        raise PlanError(f"{folder} has no {ENTRY_POINT}; an experiment folder needs one that defines `experiment`")
    if len(paths) > limits.files:
        raise PlanError(f"{folder} has {len(paths)} files, a bundle may hold {limits.files}; keep data and results out")
    try:
        check_paths(paths)
        entries = _write_archive(folder, paths, archive, limits)
        return Packed(files=entries, digest=file_digest(archive), nbytes=archive.stat().st_size)
    except BundleError as error:
        raise PlanError(str(error)) from error
    except OSError as error:
        raise StorageError(f"cannot pack {folder}: {error}") from error


def unpack(archive: Path, manifest: Manifest, folder: Path, limits: Limits | None = None) -> None:
    """Unpack a bundle into a folder that does not exist yet.

    Args:
        archive: file as received.
        manifest: verified manifest.
        folder: where the files go; its parent exists.
        limits: what this silo accepts.

    Raises:
        BundleError: archive and manifest do not agree, or hold what no bundle may; nothing is left behind.
        StorageError: the folder exists or cannot be written.
    """
    limits = limits or Limits()
    check_manifest(manifest, limits)
    if folder.exists():
        raise StorageError(f"{folder} exists; a bundle is unpacked into a fresh folder")
    temporary = folder.with_name(f".{folder.name}.unpacking")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o755)
        with archive.open("rb") as source:
            _check_archive(source, manifest)
            _extract(source, manifest, temporary)
        temporary.rename(folder)
    except OSError as error:
        raise refusal(error, folder, "cannot take the unpacked bundle", needed_bytes=archive.stat().st_size) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_digest(path: Path) -> Digest:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").digest())


def _walk(folder: Path, root: Path) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise PlanError(f"cannot read the experiment folder {folder}: {error}") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(".pyc"):
            continue
        path = Path(entry.path)
        if entry.is_symlink():
            raise PlanError(f"{path} is a link; a bundle holds plain files only: copy what it points to")
        if entry.is_dir():
            yield from _walk(path, root)
        elif entry.is_file():
            yield path.relative_to(root).as_posix()
        else:
            raise PlanError(f"{path} is neither a file nor a folder; take it out of the experiment folder")


def _write_archive(folder: Path, paths: list[str], archive: Path, limits: Limits) -> tuple[FileEntry, ...]:
    entries = []
    total = 0
    with zipfile.ZipFile(archive, "w", compression=zipfile.ZIP_STORED) as target:
        for path in paths:
            content = (folder / path).read_bytes()
            total += len(content)
            if total > limits.total_bytes:
                raise BundleError(
                    f"{folder} has more than {limits.total_bytes} bytes, the most a bundle may hold; "
                    "keep data and results out"
                )
            info = zipfile.ZipInfo(path, date_time=_EPOCH)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            target.writestr(info, content)
            entries.append(FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    return tuple(entries)


def check_manifest(manifest: Manifest, limits: Limits) -> None:
    """Check what a manifest declares, before anything of its archive is fetched or read.

    Raises:
        BundleError: it declares too much, a path no bundle may hold, or no ``experiment.py``.
    """
    total = sum(entry.size for entry in manifest.files)
    if len(manifest.files) > limits.files:
        raise BundleError(f"the bundle has {len(manifest.files)} files, at most {limits.files} are accepted")
    if total > limits.total_bytes:
        raise BundleError(f"the bundle unpacks to {total} bytes, at most {limits.total_bytes} are accepted")
    check_paths([entry.path for entry in manifest.files])
    if ENTRY_POINT not in {entry.path for entry in manifest.files}:
        raise BundleError(f"the bundle has no {ENTRY_POINT}")


def _check_archive(source: BufferedReader, manifest: Manifest) -> None:
    size = os.fstat(source.fileno()).st_size
    if size != manifest.bundle_bytes:
        raise BundleError(f"the archive has {size} bytes, the manifest says {manifest.bundle_bytes}")
    if hashlib.file_digest(source, "sha256").digest() != manifest.bundle_digest:
        raise BundleError("the archive is not the one that was signed: its SHA-256 differs from the manifest's")
    source.seek(0)


def _extract(source: BufferedReader, manifest: Manifest, folder: Path) -> None:
    expected = {entry.path: entry for entry in manifest.files}
    try:
        with zipfile.ZipFile(source) as archive:
            infos = archive.infolist()
            _check_entries(infos, expected)
            for info in infos:
                _extract_one(archive, info, expected[info.filename], folder)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise BundleError(f"the archive cannot be read: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # the disk's fault
            raise
        raise BundleError("the archive cannot be read: an offset in it lies before its beginning") from error


def _check_entries(infos: list[zipfile.ZipInfo], expected: dict[str, FileEntry]) -> None:
    for info in infos:
        path = check_path(info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.is_dir():
            raise BundleError(f"bundle entry {path!r} is not a plain file; links and devices are refused")
        if path not in expected:
            raise BundleError(f"bundle entry {path!r} is not in the manifest")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            raise BundleError(f"bundle entry {path!r} is compressed or encrypted; entries are stored")
        if not info.file_size == info.compress_size == expected[path].size:
            raise BundleError(f"bundle entry {path!r} has {info.file_size} bytes, manifest says {expected[path].size}")
    check_paths([info.filename for info in infos])
    missing = set(expected) - {info.filename for info in infos}
    if missing:
        raise BundleError(f"the archive lacks {min(missing)!r}, which is in the manifest")


def _extract_one(archive: zipfile.ZipFile, info: zipfile.ZipInfo, entry: FileEntry, folder: Path) -> None:
    target = folder / entry.path
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # O_EXCL and O_NOFOLLOW: should two checks above ever miss something, nothing is overwritten and no link followed.
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    digest = hashlib.sha256()
    with contextlib.closing(os.fdopen(descriptor, "wb")) as out, archive.open(info) as content:
        remaining = entry.size
        while remaining:
            block = content.read(min(_BLOCK_BYTES, remaining))
            if not block:
                raise BundleError(f"bundle entry {entry.path!r} is shorter than it says")
            digest.update(block)
            out.write(block)
            remaining -= len(block)
    if digest.hexdigest() != entry.sha256:
        raise BundleError(f"bundle entry {entry.path!r} was changed: its SHA-256 differs from the manifest's")
