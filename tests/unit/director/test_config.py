"""Settings of the director: typos, ranges, the environment, and the command that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from director.checking import without_lines
from director.command import BAD_CONFIGURATION, app, describe_settings
from director.config import DirectorSettings, read_settings
from director.enrolment import aggregator_configuration
from director.launcher import LaunchOrder
from federation.aggregator.config import AggregatorConfig
from federation.errors import ConfigurationError
from federation.names import Epoch, ExperimentId
from federation.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, text: str) -> Path:
    path = folder / "director.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file_and_defaults_live_in_the_state_folder(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, 'federation = "test"\nstate = "here"\n'))
    assert settings.database_url == f"sqlite:///{tmp_path}/here/director.db"
    assert settings.artifacts_url == f"{tmp_path}/here/artifacts"
    assert settings.tls.ca == tmp_path / "ca"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('federation = "test"\n[listen]\nprot = 1\n', "unknown key 'listen.prot': did you mean 'port'?"),
        ('federation = "test"\nstat = "x"\n', "unknown key 'stat': did you mean 'state'?"),
        ('federation = "No Such"\n', "federation name 'No Such' is not valid"),
        (
            'federation = "test"\n[listen]\ninsecure = true\nhost = "0.0.0.0"\n',
            "listen.host: plaintext is for loopback addresses only, got '0.0.0.0'",
        ),
        (
            'federation = "test"\n[listen]\ninsecure = true\n[aggregators]\nhost = "10.0.0.1"\n',
            "aggregators.host: plaintext is for loopback addresses only, got '10.0.0.1'",
        ),
        ('federation = "test"\n[aggregators]\nfirst_port = 9\n', "port range is 9 to 0: give both"),
        ('federation = "test"\n[aggregators]\nfirst_port = 9\nlast_port = 10\n', "fewer than max_running, 4"),
        (
            'federation = "test"\n[aggregators]\nbulk_last_port = 9\n',
            "bulk port range is 0 to 9: give both",
        ),
        (
            'federation = "test"\n[aggregators]\nbulk_first_port = 9\nbulk_last_port = 10\n',
            "bulk ports 9 to 10 are fewer than max_running, 4",
        ),
        (
            'federation = "test"\n[aggregators]\n'
            "first_port = 10\nlast_port = 19\nbulk_first_port = 19\nbulk_last_port = 28\n",
            "the bulk port range 19 to 28 overlaps the port range 10 to 19",
        ),
        ('federation = "test"\n[listen]\nport = 70000\n', "listen.port"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(write(tmp_path, text))
    assert said in str(caught.value)


CALLS = {"first_port": 8450, "last_port": 8459}
BULK = {"bulk_first_port": 8460, "bulk_last_port": 8469}


@pytest.mark.parametrize(
    ("ports", "bulk_ports"),
    [
        pytest.param({}, (0, 0), id="any"),
        pytest.param(CALLS, None, id="calls fixed"),
        pytest.param(BULK, (8460, 8469), id="lines fixed"),
        pytest.param({**CALLS, **BULK}, (8460, 8469), id="both fixed"),
    ],
)
def test_an_aggregator_takes_lines_only_where_the_firewall_may_let_them_in(
    tmp_path: Path, ports: dict[str, int], bulk_ports: tuple[int, int] | None
) -> None:
    settings = DirectorSettings(federation="test", aggregators=ports)
    configure = aggregator_configuration(settings, None, FakeClock(), lambda: "127.0.0.1:8443")
    order = LaunchOrder(experiment=ExperimentId("one"), epoch=Epoch(1), folder=tmp_path)
    assert AggregatorConfig.model_validate_json(configure(order)).bulk_ports == bulk_ports
    said = without_lines(settings)
    assert ("8450 to 8459" in said and "bulk_first_port" in said) if bulk_ports is None else not said


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIRECTOR_LISTEN__PORT", "9999")
    assert read_settings(write(tmp_path, 'federation = "test"\n[listen]\nport = 1\n')).listen.port == 9999


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path: Path) -> None:
    path = write(tmp_path, 'federation = "test"\nmax_runing = 1\n')
    for arguments in (["--config", str(path)], ["check", "--config", str(path)], ["--config", str(path), "check"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == BAD_CONFIGURATION
        assert "unknown key 'max_runing'" in result.stderr


def test_check_names_missing_certificates_and_passes_without_tls(tmp_path: Path) -> None:
    path = write(tmp_path, 'federation = "test"\n')
    result = CliRunner().invoke(app, ["check", "--config", str(path)])
    assert result.exit_code == BAD_CONFIGURATION
    assert "ca.pem" in result.stderr
    path = write(tmp_path, 'federation = "test"\n[listen]\ninsecure = true\n')
    result = CliRunner().invoke(app, ["check", "--config", str(path)])
    assert result.exit_code == 0
    assert "INSECURE" in result.stdout


def test_migrate_makes_the_database(tmp_path: Path) -> None:
    path = write(tmp_path, 'federation = "test"\n')
    for _ in range(2):
        assert CliRunner().invoke(app, ["migrate", "--config", str(path)]).exit_code == 0
    assert (tmp_path / "state" / "director.db").exists()


def test_settings_lists_every_setting_with_a_description() -> None:
    listed = CliRunner().invoke(app, ["settings"]).stdout
    described = dict(describe_settings(DirectorSettings))
    assert "listen.port" in described
    assert all(text and name in listed for name, text in described.items())
