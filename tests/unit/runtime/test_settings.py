"""A director.toml-like model: files, environment, and what a person is told about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from federation.errors import ConfigurationError
from federation.runtime.settings import load_settings


class _Listen(BaseModel):
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    allowed: list[str] = []


class _Shard(BaseModel):
    name: str
    folder: Path
    options: dict[str, float] = {}


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="DIRECTOR_", env_nested_delimiter="__", frozen=True)

    federation: str
    state: Path = Path("state")
    listen: _Listen = _Listen()
    monitoring: _Listen | None = None
    shards: list[_Shard] = []
    certificates: dict[str, Path] = {}


def _write(folder: Path, text: str) -> Path:
    path = folder / "director.toml"
    path.write_text(text)
    return path


GOOD = """
federation = "clinics"
certificates = { ca = "pki/ca.pem", absolute = "/etc/key.pem" }

[listen]
port = 50000

[[shards]]
name = "patients"
folder = "data"
"""


def test_reads_a_file_and_makes_paths_relative_to_it_defaults_included(tmp_path: Path) -> None:
    settings = load_settings(_Settings, _write(tmp_path, GOOD), {})
    assert settings.listen.port == 50000
    assert settings.state == tmp_path / "state"
    assert settings.shards[0].folder == tmp_path / "data"
    assert settings.certificates == {"ca": tmp_path / "pki/ca.pem", "absolute": Path("/etc/key.pem")}


def test_the_environment_wins_over_the_file_and_leaves_its_neighbours(tmp_path: Path) -> None:
    environment = {"DIRECTOR_LISTEN__HOST": "192.0.2.1", "DIRECTOR_FEDERATION": "labs", "director_state": "elsewhere"}
    settings = load_settings(_Settings, _write(tmp_path, GOOD), environment)
    assert (settings.federation, settings.listen.host, settings.listen.port) == ("labs", "192.0.2.1", 50000)
    assert settings.state == tmp_path / "elsewhere"


def test_works_from_the_environment_alone() -> None:
    settings = load_settings(_Settings, None, {"DIRECTOR_FEDERATION": "labs"})
    assert settings.state == Path.cwd() / "state"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('federatoin = "x"', "line 1: unknown key 'federatoin': did you mean 'federation'?", id="top"),
        pytest.param(
            'federation = "x"\n[listen]\nprot = 1',
            "line 3: unknown key 'listen.prot': did you mean 'port'?",
            id="table",
        ),
        pytest.param(
            'federation = "x"\n[monitoring]\nhots = "h"',
            "unknown key 'monitoring.hots': did you mean 'host'?",
            id="optional",
        ),
        pytest.param(
            'federation="x"\n[[shards]]\nname="a"\nfolder="a"\n[[shards]]\nname="b"\nfolder="b"\noption={}',
            "line 8: unknown key 'shards[1].option': did you mean 'options'?",
            id="array of tables",
        ),
        pytest.param(
            'federation = "x"\nzzz = 1', "valid keys here are certificates, federation, listen", id="no guess"
        ),
    ],
)
def test_a_typo_names_file_line_and_nearest_valid_key(tmp_path: Path, text: str, expected: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(_Settings, path, {})
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = _write(tmp_path, "[listen]\nport = 70000\nhsot = 'x'\n[[shards]]\nname = 'a'")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(_Settings, path, {})
    text = str(caught.value)
    assert "federation: Field required" in text
    assert "line 2: listen.port: " in text and "got 70000" in text
    assert "line 3: unknown key 'listen.hsot'" in text
    assert "shards[0].folder: Field required" in text


def test_text_values_are_not_repeated_in_errors_since_they_may_be_secret(tmp_path: Path) -> None:
    path = _write(tmp_path, 'federation = "x"\n[listen]\nport = "hunter2"')
    with pytest.raises(ConfigurationError) as caught:
        load_settings(_Settings, path, {})
    assert "hunter2" not in str(caught.value)


def test_a_variable_that_sets_nothing_is_warned_of_but_allowed(caplog: pytest.LogCaptureFixture) -> None:
    # Kubernetes sets DIRECTOR_PORT_80_TCP and its like in every pod beside a service named director.
    load_settings(_Settings, None, {"DIRECTOR_FEDERATION": "x", "DIRECTOR_STAET": "y"})
    assert "DIRECTOR_STAET sets nothing: did you mean 'state'?" in caplog.text


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        pytest.param(
            "DIRECTOR_LISTEN__PRT",
            "1",
            "environment variable DIRECTOR_LISTEN__PRT: unknown key 'listen.prt': did you mean 'port'?",
            id="typo in a section",
        ),
        pytest.param(
            "DIRECTOR_LISTEN__PORT", "x", "environment variable DIRECTOR_LISTEN__PORT: listen.port: ", id="value"
        ),
        pytest.param("DIRECTOR_LISTEN", '{"port": 70000}', "environment variable DIRECTOR_LISTEN: ", id="JSON value"),
        pytest.param("DIRECTOR_LISTEN", "x", "environment variable DIRECTOR_LISTEN: a section or a list", id="no JSON"),
        pytest.param(
            "DIRECTOR_LISTEN__ALLOWED",
            "x",
            "environment variable DIRECTOR_LISTEN__ALLOWED: a section or a list",
            id="no JSON in a section",
        ),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable_and_no_line_of_the_file(
    tmp_path: Path, variable: str, value: str, expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(_Settings, _write(tmp_path, GOOD), {variable: value})
    assert expected in str(caught.value)
    assert "  line " not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "does not exist"), ("federation = ", "is not TOML"), ("a = 1\na = 2", "is not TOML")]
)
def test_a_file_that_cannot_be_read_says_so(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "director.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=expected):
        load_settings(_Settings, path, {})
