from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError, InvalidNameError
from federation.pki.known import KnownKeys, load_known, pin

if TYPE_CHECKING:
    from pathlib import Path

ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64


def test_a_missing_file_pins_nobody(tmp_path: Path) -> None:
    assert load_known(tmp_path / "known.toml") == KnownKeys()


def test_what_was_pinned_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    pin(path, "users", "alice", ONE)
    pin(path, "sites", "north", TWO)
    known = pin(path, "users", "1-2", TWO)
    assert load_known(path) == known
    assert known == KnownKeys(users={"alice": ONE, "1-2": TWO}, sites={"north": TWO})


def test_a_changed_key_is_pinned_only_on_purpose(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    pin(path, "users", "alice", ONE)
    pin(path, "users", "alice", ONE)
    with pytest.raises(ConfigurationError, match="another channel"):
        pin(path, "users", "alice", TWO)
    assert load_known(path).users == {"alice": ONE}
    assert pin(path, "users", "alice", TWO, force=True).users == {"alice": TWO}


def test_refuses_names_with_slashes_and_what_is_no_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    with pytest.raises(InvalidNameError):
        pin(path, "users", "a/b", ONE)
    for bad in ("", "sha256:", "1" * 64, ONE.replace("1", "A")):
        with pytest.raises(ConfigurationError, match="hex digits"):
            pin(path, "users", "alice", bad)
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "[user]\n",
        "users = 1\n",
        "[users]\nalice = 1\n",
        f'[users]\n"a/b" = "{ONE}"\n',
        '[users]\nalice = "sha256:12"\n',
        "[users\n",
        "\udcff",
    ],
)
def test_refuses_a_file_that_is_not_what_it_should_be(tmp_path: Path, text: str) -> None:
    path = tmp_path / "known.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"known\.toml"):
        load_known(path)
