"""The artifact store: what an experiment leaves for its users, by experiment and name.

Rules, in order:

1. Names match ``[a-z0-9][a-z0-9._-]*`` and have no ``..``; experiments are names. No path is built from anything else.
2. An artifact appears whole, under its name, on commit; a replaced one is readable until then.
3. A folder by default; any fsspec URL otherwise. On a local disk a commit is durable.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from federation.errors import ConfigurationError, InvalidNameError, NotFoundError, StorageError
from federation.names import ExperimentId, check_name
from federation.storage.disk import Buffer, sync_folder, translated

if TYPE_CHECKING:
    from types import TracebackType

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_TEMPORARY = ".tmp-"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArtifact:
    """An artifact: `name`, size in bytes, SHA-256 in hex (empty where it was not just written)."""

    name: str
    nbytes: int
    sha256: str = ""


class ArtifactWriter(Protocol):
    """An artifact being written. Leaving its context uncommitted aborts."""

    def write(self, data: Buffer) -> None:
        """Add bytes. Raises StorageError."""
        ...

    def commit(self) -> StoredArtifact:
        """Let the artifact appear. Raises StorageError; an earlier one of the name is then as before."""
        ...

    def abort(self) -> None:
        """Forget what was written. Does nothing after `commit`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ArtifactReader(Protocol):
    """An artifact open for reading."""

    @property
    def nbytes(self) -> int:
        """Size, bytes."""
        ...

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Return up to `nbytes` from `offset` on; fewer only at the end. Raises StorageError."""
        ...

    def close(self) -> None:
        """Give it up."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ArtifactStore(Protocol):
    """Keeps artifacts. Every method may raise InvalidNameError and StorageError."""

    def create(self, experiment: ExperimentId, name: str) -> ArtifactWriter:
        """Begin an artifact, or one that will replace another."""
        ...

    def open(self, experiment: ExperimentId, name: str) -> ArtifactReader:
        """Open an artifact; NotFoundError if there is none."""
        ...

    def stat(self, experiment: ExperimentId, name: str) -> StoredArtifact:
        """Return name and size; NotFoundError if there is none."""
        ...

    def list(self, experiment: ExperimentId) -> list[StoredArtifact]:
        """Return an experiment's artifacts by name; none for an unknown experiment."""
        ...

    def remove(self, experiment: ExperimentId, name: str) -> None:
        """Remove an artifact, if it is there."""
        ...

    def remove_experiment(self, experiment: ExperimentId) -> None:
        """Remove all artifacts of an experiment."""
        ...


class FsspecStore:
    """An `ArtifactStore` at any fsspec URL.

    Args:
        url: folder path, or URL such as ``s3://bucket/prefix``.

    Raises:
        ConfigurationError: the URL's scheme is unknown or its driver is not installed.
        StorageError: the place cannot be used.
    """

    def __init__(self, url: str | Path) -> None:
        try:
            self._files, root = fsspec.core.url_to_fs(str(url))
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"artifact store {url}: {error}") from error
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)
        with _translated(self._root):
            self._files.makedirs(self._root, exist_ok=True)

    def create(self, experiment: ExperimentId, name: str) -> _Writer:
        """Begin an artifact, or one that will replace another."""
        path = self._path(experiment, name)
        with _translated(path):
            self._files.makedirs(posixpath.dirname(path), exist_ok=True)
        return _Writer(self._files, path, name, is_local=self._is_local)

    def open(self, experiment: ExperimentId, name: str) -> _Reader:
        """Open an artifact; NotFoundError if there is none."""
        path = self._path(experiment, name)
        nbytes = self.stat(experiment, name).nbytes
        with _translated(path):
            return _Reader(self._files.open(path, "rb"), path, nbytes)

    def stat(self, experiment: ExperimentId, name: str) -> StoredArtifact:
        """Return name and size; NotFoundError if there is none."""
        path = self._path(experiment, name)
        try:
            with _translated(path):
                return StoredArtifact(name=name, nbytes=int(self._files.info(path)["size"]))
        except NotFoundError:
            raise NotFoundError(f"experiment {experiment} has no artifact {name!r}") from None

    def list(self, experiment: ExperimentId) -> list[StoredArtifact]:
        """Return an experiment's artifacts by name; none for an unknown experiment."""
        folder = self._folder(experiment)
        try:
            with _translated(folder):
                rows = self._files.ls(folder, detail=True, refresh=True)
        except NotFoundError:
            return []
        found = [(posixpath.basename(row["name"]), row) for row in rows if row["type"] == "file"]
        return sorted(
            (StoredArtifact(name=name, nbytes=int(row["size"])) for name, row in found if _NAME.fullmatch(name)),
            key=lambda artifact: artifact.name,
        )

    def remove(self, experiment: ExperimentId, name: str) -> None:
        """Remove an artifact, if it is there."""
        path = self._path(experiment, name)
        with contextlib.suppress(NotFoundError), _translated(path):
            self._files.rm_file(path)

    def remove_experiment(self, experiment: ExperimentId) -> None:
        """Remove all artifacts of an experiment."""
        folder = self._folder(experiment)
        with contextlib.suppress(NotFoundError), _translated(folder):
            self._files.rm(folder, recursive=True)

    def _folder(self, experiment: ExperimentId) -> str:
        return f"{self._root}/{check_name(experiment, 'experiment id')}"

    def _path(self, experiment: ExperimentId, name: str) -> str:
        if not _NAME.fullmatch(name) or ".." in name:
            raise InvalidNameError(
                f"artifact name {name[:80]!r} is not valid: use 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning with "
                "a letter or digit, without '..'"
            )
        return f"{self._folder(experiment)}/{name}"


def put_file(store: ArtifactStore, experiment: ExperimentId, name: str, path: Path) -> StoredArtifact:
    """Copy a file into the store, 1 MiB at a time.

    Raises:
        StorageError: it cannot be read, or the store refused.
    """
    with store.create(experiment, name) as writer, translated(path), open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            writer.write(block)
        return writer.commit()


class _Writer:
    def __init__(self, files: Any, path: str, name: str, *, is_local: bool) -> None:
        folder, base = posixpath.split(path)
        self._files = files
        self._path = path
        self._name = name
        self._is_local = is_local
        self._temporary = f"{folder}/{_TEMPORARY}{secrets.token_hex(4)}-{base}"
        self._sha256 = hashlib.sha256()
        self._nbytes = 0
        self._is_open = True
        with _translated(path):
            self._file: IO[bytes] = files.open(self._temporary, "wb")

    def write(self, data: Buffer) -> None:
        with _translated(self._path, memoryview(data).nbytes):
            self._file.write(data)
        self._sha256.update(data)
        self._nbytes += memoryview(data).nbytes

    def commit(self) -> StoredArtifact:
        """Make it durable, give it its name, and return what is stored."""
        with _translated(self._path, self._nbytes):
            if self._is_local:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if self._is_local:
                os.replace(self._temporary, self._path)
                sync_folder(Path(self._path).parent)
            else:
                self._files.mv(self._temporary, self._path)
        self._is_open = False
        return StoredArtifact(name=self._name, nbytes=self._nbytes, sha256=self._sha256.hexdigest())

    def abort(self) -> None:
        if self._is_open:
            self._is_open = False
            # Whatever went wrong before is what the caller should hear of, not that cleaning up failed too.
            with contextlib.suppress(Exception):
                self._file.close()
            with contextlib.suppress(Exception):
                self._files.rm_file(self._temporary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class _Reader:
    def __init__(self, file: IO[bytes], path: str, nbytes: int) -> None:
        self.nbytes = nbytes
        self._file = file
        self._path = path

    def pread(self, offset: int, nbytes: int) -> bytes:
        wanted = max(0, min(nbytes, self.nbytes - offset))
        with _translated(self._path):
            self._file.seek(offset)
            data = self._file.read(wanted)
        if len(data) != wanted:
            raise StorageError(f"{self._path}: {len(data)} bytes at {offset}, expected {wanted}")
        return data

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _translated(path: str, needed_bytes: int = 0) -> Any:
    """Turn what fsspec and its drivers raise into our errors; drivers raise more than OSError."""
    try:
        with translated(Path(path), needed_bytes):
            try:
                yield
            except FileNotFoundError as error:
                raise NotFoundError(f"{path} does not exist") from error
    except (StorageError, NotFoundError):
        raise
    except Exception as error:
        raise StorageError(f"artifact store: {path}: {error}") from error
