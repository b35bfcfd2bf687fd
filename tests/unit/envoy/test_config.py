from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envoy.config import read_settings
from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
federation = "care"
director = "director.example.org:7000"

[[shards]]
name = "ward"
kind = "tumours"
factory = "shards:Ward"
paths = ["data"]
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "envoy.toml"
    path.write_text(text)
    return path


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = read_settings(_write(tmp_path, GOOD))
    assert settings.state == tmp_path / "state"
    assert settings.shards[0].paths == [tmp_path / "data"]
    assert settings.policy.known == tmp_path / "known.toml"


def test_what_the_owner_says_of_trainers_is_what_collaborators_are_told(tmp_path: Path) -> None:
    settings = read_settings(_write(tmp_path, GOOD + "\n[trainer]\nmax_deaths = 2\nopen_files = 99\n"))
    assert (settings.trainer_options.max_deaths, settings.trainer_options.open_files) == (2, 99)


def test_a_typo_in_a_key_names_the_nearest_valid_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="directory") as caught:
        read_settings(_write(tmp_path, GOOD.replace("director =", "directory =")))
    assert "director" in str(caught.value).replace("directory", "")


def test_a_typo_in_a_nested_key_names_the_nearest_valid_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_rounds"):
        read_settings(_write(tmp_path, GOOD + "\n[policy]\nmax_round = 3\n"))


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVOY_POLICY__MAX_ROUNDS", "7")
    monkeypatch.setenv("ENVOY_DIRECTOR", "other:1")
    settings = read_settings(_write(tmp_path, GOOD + "\n[policy]\nmax_rounds = 3\n"))
    assert settings.admission_policy.max_rounds == 7
    assert settings.director == "other:1"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        pytest.param(('name = "ward"', 'name = "ward/../x"'), "shard name", id="name with slashes"),
        pytest.param(
            ('factory = "shards:Ward"', 'factory = "shards.Ward"'), "module:Class", id="factory without colon"
        ),
        pytest.param(('federation = "care"', 'federation = "Care"'), "federation name", id="upper-case federation"),
        pytest.param(
            ('federation = "care"', 'federation = "care"\ninsecure_site = "north"'),
            "insecure_site: plaintext is for loopback addresses only, got 'director.example.org'",
            id="another machine without certificates",
        ),
    ],
)
def test_a_bad_value_is_an_error_that_names_it(tmp_path: Path, change: tuple[str, str], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        read_settings(_write(tmp_path, GOOD.replace(*change)))


def test_two_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    again = GOOD[GOOD.index("[[shards]]") :]
    with pytest.raises(ConfigurationError, match="unique"):
        read_settings(_write(tmp_path, GOOD + again))


def test_every_setting_is_documented() -> None:
    from envoy.config import EnvoySettings

    def undocumented(model: type, place: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if not field.description:
                found.append(place + name)
            inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
            for kind in inner:
                if hasattr(kind, "model_fields"):
                    found += undocumented(kind, f"{place}{name}.")
        return found

    assert undocumented(EnvoySettings, "") == []
