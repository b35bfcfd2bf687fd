from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.bundle.paths import check_path, check_paths
from federation.errors import BundleError


@pytest.mark.parametrize("path", ["experiment.py", "a/b/c.txt", "größe.py", "a b.py", "..a", "a..b/c"])
def test_plain_relative_paths_are_accepted(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "../x", "a/../../x", "..", ".", "/etc/passwd", "//x", "", "a//b", "a/", "./a", "a\\b", "..\\x", "C:x", "a\x00b",
        "a\nb", "a\u202eb", "x" * 256, "/".join("a" * 17), 7, None, b"a", "\ud800",
    ],
    ids=ascii,
)  # fmt: skip
def test_paths_that_could_mean_another_place_are_refused(path: object) -> None:
    with pytest.raises(BundleError):
        check_path(path)


@pytest.mark.parametrize(
    "paths",
    [["a", "a"], ["A.py", "a.py"], ["stra\u00dfe", "STRASSE"], ["e\u0301", "\u00e9"], ["a", "a/b"], ["A/b", "a"]],
    ids=ascii,
)
def test_paths_that_could_be_one_file_are_refused(paths: list[str]) -> None:
    with pytest.raises(BundleError):
        check_paths(paths)


@given(st.text(max_size=40))
def test_an_accepted_path_stays_inside_its_folder(path: str) -> None:
    import posixpath

    try:
        check_path(path)
    except BundleError:
        return
    assert posixpath.normpath(posixpath.join("/home", path)) == "/home/" + path
