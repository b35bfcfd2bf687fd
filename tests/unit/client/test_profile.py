"""Profiles: found where they are said to be, and each mistake says how to mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from federation.client.profile import default_profile_path, load_profile
from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

MINIMAL = 'federation = "demo"\naddress = "director.example:7700"\n'


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ADDRESS", "FEDERATION", "HOME", "PROFILE", "AUTHORITY", "CERTIFICATE", "KEY", "SIGNING_KEY"):
        monkeypatch.delenv(f"FEDERATION_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write(folder: Path, text: str = MINIMAL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "client.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_environment_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDERATION_FEDERATION", "demo")
    with pytest.raises(ConfigurationError, match="set FEDERATION_FEDERATION and FEDERATION_ADDRESS"):
        load_profile()
    monkeypatch.setenv("FEDERATION_ADDRESS", "director.example:7700")
    monkeypatch.setenv("FEDERATION_KEY", "keys/own.pem")
    profile = load_profile()
    assert (profile.federation, profile.address) == ("demo", "director.example:7700")
    assert (profile.key, profile.authority) == (tmp_path / "keys" / "own.pem", tmp_path / "ca.pem")
    with pytest.raises(ConfigurationError, match="no client profile"):
        load_profile(tmp_path / "named.toml")  # a mistake in a name must not lead to another federation


def test_a_folder_is_enough_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    write(tmp_path / "alice")
    profile = load_profile(tmp_path / "alice")
    assert profile.address == "director.example:7700"
    assert profile.server_name == "director.demo.internal"
    assert profile.tls is not None and profile.claimed_identity is None
    assert profile.tls.authority == tmp_path / "alice" / "ca.pem"
    assert profile.tls.key == tmp_path / "alice" / "key.pem"
    assert profile.signing_key == tmp_path / "alice" / "signing.key"


def test_a_user_without_certificates_says_who_he_is(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINIMAL + 'insecure_user = "alice"\n'))
    assert profile.tls is None
    assert profile.claimed_identity is not None
    assert profile.claimed_identity.spiffe == "spiffe://demo/user/alice"


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDERATION_ADDRESS", "elsewhere:1")
    assert load_profile(write(tmp_path)).address == "elsewhere:1"


def test_the_default_place_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_profile_path() == tmp_path / "home" / ".config" / "federation" / "client.toml"
    monkeypatch.setenv("FEDERATION_HOME", str(tmp_path / "elsewhere"))
    assert default_profile_path() == tmp_path / "elsewhere" / "client.toml"
    write(tmp_path / "elsewhere")
    assert load_profile().federation == "demo"


def test_variables_that_say_where_the_profile_is_are_not_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FEDERATION_HOME", str(tmp_path))
    monkeypatch.setenv("FEDERATION_PROFILE", str(tmp_path))
    load_profile(write(tmp_path))
    assert caplog.records == []
    monkeypatch.setenv("FEDERATION_ADRESS", "typo:1")
    load_profile(write(tmp_path))
    assert "FEDERATION_ADRESS" in caplog.text


def test_a_missing_profile_names_where_it_was_looked_for_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"client\.toml.*--profile.*pki issue user"):
        load_profile(tmp_path / "nowhere" / "client.toml")


def test_a_folder_without_a_profile_is_missing_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"client\.toml"):
        load_profile(tmp_path)


def test_a_typo_names_the_nearest_valid_key(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + 'certificat = "cert.pem"\n')
    with pytest.raises(ConfigurationError, match=r"certificat\b.*certificate"):
        load_profile(path)


def test_a_missing_address_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="address"):
        load_profile(write(tmp_path, 'federation = "demo"\n'))


def test_a_timeout_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="timeout_s"):
        load_profile(write(tmp_path, MINIMAL + "timeout_s = 0\n"))


def test_a_federation_name_with_a_slash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="federation"):
        load_profile(write(tmp_path, MINIMAL.replace('"demo"', '"de/mo"')))


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"client\.toml"):
        load_profile(write(tmp_path, "federation ="))
