"""Which paths a bundle may hold: the same rules when packing, in a manifest and in an archive.

A path is relative, written with slashes, and means one file on every file system: no empty part, ``.`` or ``..``, no
backslash, colon or control character, and no two paths that differ only by case or Unicode form, or of which one is a
file where the other needs a folder.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from federation.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PATH_BYTES = 255
MAX_DEPTH = 16


def check_path(path: object) -> str:
    """Return `path` if a bundle may hold it.

    Raises:
        BundleError: it may not; the text says why.
    """
    shown = repr(str(path)[:120])
    if not isinstance(path, str) or not path:
        raise BundleError(f"bundle path {shown} is not a non-empty text")
    if len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise BundleError(f"bundle path {shown}… is longer than {MAX_PATH_BYTES} bytes")
    if path.startswith("/"):
        raise BundleError(f"bundle path {shown} is absolute")
    parts = path.split("/")
    if ".." in parts:
        raise BundleError(f"bundle path {shown} leaves its folder")
    if len(parts) > MAX_DEPTH:
        raise BundleError(f"bundle path {shown} is more than {MAX_DEPTH} folders deep")
    if any(part in ("", ".") for part in parts):
        raise BundleError(f"bundle path {shown} has an empty part")
    if any(sign in '\\:*?"<>|' or unicodedata.category(sign) in ("Cc", "Cf", "Cs") for sign in path):
        raise BundleError(f"bundle path {shown} has a backslash, a colon or another sign that is not portable")
    return path


def check_paths(paths: Sequence[object]) -> None:
    """Check each path and that no two of them can be the same file.

    Raises:
        BundleError: names the path that is wrong.
    """
    files: set[str] = set()
    folders: set[str] = set()
    for candidate in paths:
        path = check_path(candidate)
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in files:
            raise BundleError(f"bundle path {path!r} occurs twice (case does not distinguish)")
        files.add(folded)
        parts = folded.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    both = files & folders
    if both:
        raise BundleError(f"bundle path {min(both)!r} is a file and a folder at once")
