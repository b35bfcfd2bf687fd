"""What deploy/ ships: sample settings that load, name every setting, and show the true defaults."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from director.config import DirectorSettings
from envoy.config import EnvoySettings
from federation.runtime.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
SAMPLES = [
    pytest.param(DirectorSettings, DEPLOY / "director.toml", id="director"),
    pytest.param(EnvoySettings, DEPLOY / "envoy.toml", id="envoy"),
]
UNLIKE_DEFAULT = {("trainer", "interpreter")}
"""The default is the interpreter that runs this test."""


def rows(path: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Yield section, key, value and whether it is commented out, for each setting of a sample."""
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, equals, value = line.removeprefix("# ").partition(" =")
        if equals and key.isidentifier():
            yield section, key, value.strip(), line.startswith("#")


def settings_of(model: type[BaseModel], section: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, info in model.model_fields.items():
        annotation: Any = info.annotation
        inner = next((arg for arg in getattr(annotation, "__args__", ()) if _is_section(arg)), annotation)
        if _is_section(inner):
            yield from settings_of(inner, name)
        else:
            yield section, name, info


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@pytest.mark.parametrize(("model", "path"), SAMPLES)
def test_a_sample_loads_as_it_is(model: Any, path: Path) -> None:
    assert load_settings(model, path, environ={}).federation == "hospitals"


@pytest.mark.parametrize(("model", "path"), SAMPLES)
def test_a_sample_names_every_setting_once_and_no_other(model: Any, path: Path) -> None:
    named = [(section, key) for section, key, _, _ in rows(path)]
    assert sorted(named) == sorted((section, key) for section, key, _ in settings_of(model))


@pytest.mark.parametrize(("model", "path"), SAMPLES)
def test_what_is_commented_out_in_a_sample_is_the_default(model: Any, path: Path) -> None:
    defaults = {
        (section, key): info.get_default(call_default_factory=True) for section, key, info in settings_of(model)
    }
    for section, key, value, commented in rows(path):
        if not commented or (section, key) in UNLIKE_DEFAULT:
            continue
        default = defaults[section, key]
        if not value:
            assert default is None, f"{section}.{key} has the default {default}"
        else:
            shown = tomllib.loads(f"it = {value}")["it"]
            assert shown == (str(default) if isinstance(default, Path) else default), f"{section}.{key}"


@pytest.mark.parametrize("model", [DirectorSettings, EnvoySettings])
def test_every_setting_says_what_it_means(model: Any) -> None:
    assert [key for _, key, info in settings_of(model) if not info.description] == []


@pytest.mark.parametrize("name", ["director", "envoy"])
def test_units_start_the_command_with_its_sample_and_let_it_drain_alone(name: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(DEPLOY / "systemd" / f"federation-{name}.service")
    service = unit["Service"]
    assert service["ExecStart"].endswith(f"/{name} --config /etc/federation/{name}.toml")
    assert (service["Type"], service["KillMode"]) == ("notify", "process")
