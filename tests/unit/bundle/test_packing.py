from __future__ import annotations

import io
import os
import stat
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.bundle import FileEntry, Limits, Manifest, Packed, file_digest, pack, unpack
from federation.errors import BundleError, PlanError, StorageError
from federation.names import Digest

if TYPE_CHECKING:
    from pathlib import Path


def _as_packed(archive: Path, files: dict[str, bytes]) -> Packed:
    """Say of an archive that it holds these files, as a dishonest submitter would."""
    import hashlib

    entries = tuple(
        FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in sorted(files.items())
    )
    return Packed(files=entries, digest=file_digest(archive), nbytes=archive.stat().st_size)


def _write(archive: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]], compression: int = 0) -> None:
    with zipfile.ZipFile(archive, "w", compression=compression) as target:
        for info, content in entries:
            target.writestr(info, content)


def _is_empty(folder: Path) -> bool:
    return not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))


def test_a_folder_comes_back_as_it_was_packed(source, describe, tmp_path) -> None:
    unpack(source.archive, describe(source.packed), tmp_path / "out")
    assert (tmp_path / "out" / "experiment.py").read_text() == "experiment = 1\n"
    assert (tmp_path / "out" / "parts" / "network.py").read_text() == "layers = 3\n"


def test_equal_folders_give_equal_archives_whenever_they_were_written(source, tmp_path) -> None:
    os.utime(source.folder / "experiment.py", (0, 0))
    (source.folder / "experiment.py").chmod(0o600)
    assert pack(source.folder, tmp_path / "again.zip") == source.packed


def test_hidden_files_and_caches_stay_at_home(source, tmp_path) -> None:
    (source.folder / ".git").mkdir()
    (source.folder / ".git" / "config").write_text("secret")
    (source.folder / ".env").write_text("secret")
    (source.folder / "__pycache__").mkdir()
    (source.folder / "__pycache__" / "x.pyc").write_text("")
    assert pack(source.folder, tmp_path / "again.zip") == source.packed


def test_a_link_is_refused_rather_than_followed(source, tmp_path) -> None:
    (source.folder / "key").symlink_to("/etc/hostname")
    with pytest.raises(PlanError, match="link"):
        pack(source.folder, tmp_path / "again.zip")


def test_what_is_no_file_is_refused(source, tmp_path) -> None:
    os.mkfifo(source.folder / "pipe")
    with pytest.raises(PlanError, match="neither"):
        pack(source.folder, tmp_path / "again.zip")


def test_a_folder_without_experiment_py_is_refused(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match=r"experiment\.py"):
        pack(tmp_path / "empty", tmp_path / "bundle.zip")
    with pytest.raises(PlanError, match="cannot read"):
        pack(tmp_path / "missing", tmp_path / "bundle.zip")


def test_more_than_silos_accept_is_refused_at_home(source, tmp_path) -> None:
    with pytest.raises(PlanError, match="files"):
        pack(source.folder, tmp_path / "again.zip", Limits(files=1))
    with pytest.raises(PlanError, match="bytes"):
        pack(source.folder, tmp_path / "again.zip", Limits(total_bytes=20))


def test_a_bundle_with_a_changed_file_is_refused(source, describe, tmp_path) -> None:
    manifest = describe(source.packed)
    data = bytearray(source.archive.read_bytes())
    data[data.index(b"experiment = 1")] ^= 1
    source.archive.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        unpack(source.archive, manifest, tmp_path / "out")
    assert _is_empty(tmp_path / "out")


def test_a_file_that_is_not_the_one_in_the_manifest_is_refused_though_the_archive_is(describe, tmp_path) -> None:
    archive = tmp_path / "b.zip"
    _write(archive, [("experiment.py", b"evil = 1")])
    packed = _as_packed(archive, {"experiment.py": b"good = 1"})
    with pytest.raises(BundleError, match="changed"):
        unpack(archive, describe(packed), tmp_path / "out")
    assert _is_empty(tmp_path / "out")


@pytest.mark.parametrize("path", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "a\\..\\evil.py"])
def test_an_entry_that_leaves_the_folder_is_refused(describe, tmp_path, path) -> None:
    archive = tmp_path / "b.zip"
    _write(archive, [("experiment.py", b"x"), (path, b"evil")])
    honest = _as_packed(archive, {"experiment.py": b"x"})
    with pytest.raises(BundleError):
        unpack(archive, describe(honest), tmp_path / "out")
    agreed = _as_packed(archive, {"experiment.py": b"x", path: b"evil"})
    with pytest.raises(BundleError):
        unpack(archive, describe(agreed), tmp_path / "out")
    assert _is_empty(tmp_path / "out")
    assert not (tmp_path / "evil.py").exists()


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR], ids=["link", "pipe", "device", "folder"]
)
def test_an_entry_that_is_no_plain_file_is_refused(describe, tmp_path, kind) -> None:
    info = zipfile.ZipInfo("data")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    archive = tmp_path / "b.zip"
    _write(archive, [("experiment.py", b"x"), (info, b"/etc/passwd")])
    packed = _as_packed(archive, {"experiment.py": b"x", "data": b"/etc/passwd"})
    with pytest.raises(BundleError, match="plain file"):
        unpack(archive, describe(packed), tmp_path / "out")
    assert _is_empty(tmp_path / "out")


def test_a_zip_bomb_is_refused_before_it_is_opened(describe, tmp_path) -> None:
    bomb = b"\x00" * 10_000_000
    archive = tmp_path / "b.zip"
    _write(archive, [("experiment.py", b"x"), ("bomb", bomb)], compression=zipfile.ZIP_DEFLATED)
    packed = _as_packed(archive, {"experiment.py": b"x", "bomb": bomb})
    assert packed.nbytes < 100_000
    with pytest.raises(BundleError, match="compressed"):
        unpack(archive, describe(packed), tmp_path / "out")
    with pytest.raises(BundleError, match="accepted"):
        unpack(archive, describe(packed), tmp_path / "out", Limits(total_bytes=1_000_000))


def test_an_entry_that_declares_another_size_than_it_has_is_refused(describe, tmp_path) -> None:
    archive = tmp_path / "b.zip"
    _write(archive, [("experiment.py", b"x" * 100)])
    data = archive.read_bytes().replace((100).to_bytes(4, "little"), (90).to_bytes(4, "little"))
    archive.write_bytes(data)
    with pytest.raises(BundleError):
        unpack(archive, describe(_as_packed(archive, {"experiment.py": b"x" * 100})), tmp_path / "out")
    with pytest.raises(BundleError):
        unpack(archive, describe(_as_packed(archive, {"experiment.py": b"x" * 90})), tmp_path / "out")
    assert _is_empty(tmp_path / "out")


def test_too_many_files_are_refused(source, describe, tmp_path) -> None:
    with pytest.raises(BundleError, match="files"):
        unpack(source.archive, describe(source.packed), tmp_path / "out", Limits(files=1))


def test_an_entry_beside_the_manifest_and_a_missing_one_are_refused(describe, tmp_path) -> None:
    archive = tmp_path / "b.zip"
    _write(archive, [("experiment.py", b"x"), ("more.py", b"y")])
    with pytest.raises(BundleError, match="not in the manifest"):
        unpack(archive, describe(_as_packed(archive, {"experiment.py": b"x"})), tmp_path / "out")
    with pytest.raises(BundleError, match="lacks"):
        files = {"experiment.py": b"x", "more.py": b"y", "third.py": b"z"}
        unpack(archive, describe(_as_packed(archive, files)), tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_occurs_twice_is_refused(describe, tmp_path) -> None:
    archive = tmp_path / "b.zip"
    _write(archive, [("experiment.py", b"x"), ("experiment.py", b"y")])
    with pytest.raises(BundleError, match="twice"):
        unpack(archive, describe(_as_packed(archive, {"experiment.py": b"x"})), tmp_path / "out")


def test_what_is_no_archive_is_refused(describe, tmp_path) -> None:
    archive = tmp_path / "b.zip"
    archive.write_bytes(b"not a zip file")
    with pytest.raises(BundleError, match="cannot be read"):
        unpack(archive, describe(_as_packed(archive, {"experiment.py": b"x"})), tmp_path / "out")


def test_a_truncated_archive_is_refused(source, describe, tmp_path) -> None:
    source.archive.write_bytes(source.archive.read_bytes()[:-10])
    with pytest.raises(BundleError, match="bytes"):
        unpack(source.archive, describe(source.packed), tmp_path / "out")


def test_a_folder_that_exists_is_not_written_into(source, describe, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="fresh"):
        unpack(source.archive, describe(source.packed), tmp_path / "out")


def test_what_a_crash_left_half_unpacked_is_replaced(source, describe, tmp_path) -> None:
    (tmp_path / ".out.unpacking").mkdir()
    (tmp_path / ".out.unpacking" / "evil.py").write_text("")
    unpack(source.archive, describe(source.packed), tmp_path / "out")
    assert not (tmp_path / "out" / "evil.py").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(min_value=0), change=st.integers(1, 255))
def test_an_archive_of_which_the_manifest_is_not_true_never_unpacks(source, describe, tmp_path, place, change) -> None:
    """Even if a liar signs the changed archive's digest, its files are still those of the manifest or nothing is."""
    data = bytearray(source.archive.read_bytes())
    data[place % len(data)] ^= change
    archive = tmp_path / "changed.zip"
    archive.write_bytes(data)
    manifest: Manifest = describe(source.packed, bundle_digest=Digest(file_digest(archive)), bundle_bytes=len(data))
    out = tmp_path / "out"
    try:
        unpack(archive, manifest, out)
    except BundleError:
        assert not out.exists()
        return
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with zipfile.ZipFile(io.BytesIO(source.archive.read_bytes())) as original:
        assert found == {name: original.read(name) for name in original.namelist()}
    import shutil

    shutil.rmtree(out)
