"""What every artifact store promises. A new store is added to `STORES` and must pass."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

import pytest

from federation.errors import InvalidNameError, NotFoundError
from federation.names import ExperimentId
from federation.storage.artifacts import ArtifactStore, FsspecStore, StoredArtifact, put_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_numbers = itertools.count()
STORES: dict[str, Callable[[Path], ArtifactStore]] = {
    "folder": lambda folder: FsspecStore(folder / "artifacts"),
    "file URL": lambda folder: FsspecStore(f"file://{folder}/artifacts"),
    "memory": lambda folder: FsspecStore(f"memory://federation-{next(_numbers)}/artifacts"),
}
EXPERIMENT = ExperimentId("digits-abcd1234")


@pytest.fixture(params=STORES.values(), ids=STORES.keys())
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return request.param(tmp_path)


def put(store: ArtifactStore, name: str, content: bytes, experiment: ExperimentId = EXPERIMENT) -> StoredArtifact:
    with store.create(experiment, name) as writer:
        writer.write(content[:3])
        writer.write(memoryview(content)[3:])
        return writer.commit()


def get(store: ArtifactStore, name: str, experiment: ExperimentId = EXPERIMENT) -> bytes:
    with store.open(experiment, name) as reader:
        return reader.pread(0, reader.nbytes)


def test_what_is_committed_is_read_again(store: ArtifactStore) -> None:
    stored = put(store, "last.safetensors", b"content")
    assert stored == StoredArtifact(name="last.safetensors", nbytes=7, sha256=hashlib.sha256(b"content").hexdigest())
    assert get(store, "last.safetensors") == b"content"
    assert store.stat(EXPERIMENT, "last.safetensors").nbytes == 7


def test_reads_at_any_offset_and_stop_at_the_end(store: ArtifactStore) -> None:
    put(store, "a.bin", bytes(range(100)))
    with store.open(EXPERIMENT, "a.bin") as reader:
        assert reader.nbytes == 100
        assert reader.pread(40, 3) == bytes([40, 41, 42])
        assert reader.pread(98, 10) == bytes([98, 99])
        assert reader.pread(0, 1) == b"\0"
        assert reader.pread(100, 10) == b""
        assert reader.pread(1000, 10) == b""


def test_an_empty_artifact_is_an_artifact(store: ArtifactStore) -> None:
    with store.create(EXPERIMENT, "empty") as writer:
        writer.commit()
    assert get(store, "empty") == b""
    assert [artifact.name for artifact in store.list(EXPERIMENT)] == ["empty"]


def test_nothing_appears_before_commit_and_the_old_one_stays(store: ArtifactStore) -> None:
    put(store, "a.bin", b"old")
    with store.create(EXPERIMENT, "a.bin") as writer:
        writer.write(b"newer")
        assert get(store, "a.bin") == b"old"
        assert [artifact.name for artifact in store.list(EXPERIMENT)] == ["a.bin"]
        writer.commit()
    assert get(store, "a.bin") == b"newer"


def test_an_abandoned_artifact_leaves_nothing(store: ArtifactStore) -> None:
    with pytest.raises(ZeroDivisionError), store.create(EXPERIMENT, "a.bin") as writer:
        writer.write(b"half")
        raise ZeroDivisionError
    assert store.list(EXPERIMENT) == []
    with pytest.raises(NotFoundError):
        store.open(EXPERIMENT, "a.bin")


def test_lists_an_experiments_own_artifacts_by_name(store: ArtifactStore) -> None:
    for name in ("b", "a", "history.json"):
        put(store, name, b"xyz")
    put(store, "other", b"xyz", ExperimentId("another-abcd1234"))
    assert [(artifact.name, artifact.nbytes) for artifact in store.list(EXPERIMENT)] == [
        ("a", 3),
        ("b", 3),
        ("history.json", 3),
    ]


def test_an_unknown_experiment_has_no_artifacts(store: ArtifactStore) -> None:
    assert store.list(ExperimentId("unknown-abcd1234")) == []
    store.remove_experiment(ExperimentId("unknown-abcd1234"))


def test_a_missing_artifact_is_not_found_and_removing_it_is_no_fault(store: ArtifactStore) -> None:
    with pytest.raises(NotFoundError, match=r"digits-abcd1234 has no artifact 'none\.bin'"):
        store.open(EXPERIMENT, "none.bin")
    with pytest.raises(NotFoundError):
        store.stat(EXPERIMENT, "none.bin")
    store.remove(EXPERIMENT, "none.bin")


def test_removed_artifacts_are_gone(store: ArtifactStore) -> None:
    for name in ("a", "b", "c"):
        put(store, name, b"xyz")
    store.remove(EXPERIMENT, "b")
    assert [artifact.name for artifact in store.list(EXPERIMENT)] == ["a", "c"]
    store.remove_experiment(EXPERIMENT)
    assert store.list(EXPERIMENT) == []


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "a/b", "/etc/passwd", ".hidden", "A", "a..b", "a\\b", "x" * 129, "a\n"], ids=repr
)
def test_names_that_could_leave_the_folder_are_refused(store: ArtifactStore, name: str) -> None:
    for act in (store.create, store.open, store.stat, store.remove):
        with pytest.raises(InvalidNameError, match="artifact name"):
            act(EXPERIMENT, name)


@pytest.mark.parametrize("experiment", ["", "..", "a/b", "../x", "A"], ids=repr)
def test_experiments_that_are_no_names_are_refused(store: ArtifactStore, experiment: str) -> None:
    for act in (store.list, store.remove_experiment):
        with pytest.raises(InvalidNameError, match="experiment id"):
            act(ExperimentId(experiment))


def test_a_file_is_copied_in(store: ArtifactStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 << 20) + b"end")
    stored = put_file(store, EXPERIMENT, "big.bin", path)
    assert stored.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with store.open(EXPERIMENT, "big.bin") as reader:
        assert reader.pread(3 << 20, 10) == b"end"
