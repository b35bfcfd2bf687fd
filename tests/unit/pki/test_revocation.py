from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError
from federation.pki.revocation import RevocationList, parse_serial, revoke

if TYPE_CHECKING:
    from pathlib import Path


def test_a_missing_file_revokes_nothing(tmp_path: Path) -> None:
    assert 5 not in RevocationList(tmp_path / "revoked.txt")


def test_a_change_is_seen_at_the_next_question_and_told_once(tmp_path: Path) -> None:
    path = tmp_path / "revoked.txt"
    revoked = RevocationList(path)
    told: list[int] = []
    unsubscribe = revoked.subscribe(lambda: told.append(len(revoked)))
    assert revoke(path, 0xABC)
    assert 0xABC in revoked
    assert 0xABC in revoked
    assert told == [1]
    assert revoke(path, 0xDEF)
    assert revoked.reload()
    assert not revoked.reload()
    assert told == [1, 2]
    unsubscribe()
    revoke(path, 1)
    assert 1 in revoked
    assert told == [1, 2]


def test_revoking_again_changes_nothing_and_keeps_comments(tmp_path: Path) -> None:
    path = tmp_path / "revoked.txt"
    path.write_text("# stolen laptop\n0a:0B  # alice")
    assert not revoke(path, 0x0A0B)
    assert revoke(path, 0xC)
    assert "# stolen laptop\n0a:0B  # alice\nc\n" == path.read_text()
    assert RevocationList(path).serials == {0x0A0B, 0xC}


def test_deleting_the_file_does_not_pardon(tmp_path: Path) -> None:
    path = tmp_path / "revoked.txt"
    revoke(path, 7)
    revoked = RevocationList(path)
    path.unlink()
    assert 7 in revoked


def test_a_file_that_breaks_fails_closed_until_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "revoked.txt"
    revoke(path, 7)
    revoked = RevocationList(path)
    path.write_text("7\nalice\n")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="line 2"):
            assert 8 in revoked
    path.write_text("7\n8\n")
    assert 8 in revoked


@pytest.mark.parametrize("text", ["", "xyz", "1" * 41, "-1", "0x10"])
def test_refuses_what_is_no_serial(text: str) -> None:
    with pytest.raises(ConfigurationError, match="serial"):
        parse_serial(text)
