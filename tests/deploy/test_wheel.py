"""What a wheel holds: files that are no Python, or that nothing imports, are the first to be forgotten."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build a wheel of a copy, as pip would without isolation and with no need for a network; return its files."""
    source, target = tmp_path_factory.mktemp("wheel") / "source", tmp_path_factory.mktemp("dist")
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("federation", "director", "envoy"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(target)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_every_source_file_of_ours_is_in_the_wheel(names: list[str]) -> None:
    packages = [ROOT / package for package in ("federation", "director", "envoy")]
    sources = {str(path.relative_to(ROOT)) for package in packages for path in package.rglob("*.py")}
    assert sources - set(names) == set()


@pytest.mark.parametrize(
    "name",
    [
        "federation/py.typed",
        "director/py.typed",
        "envoy/py.typed",
        "federation/client/hospitals/experiment.py",
        "director/migrations/env.py",
        "director/migrations/script.py.mako",
        "director/migrations/versions/v0001_first_tables.py",
    ],
)
def test_the_wheel_has_what_only_a_running_program_misses(names: list[str], name: str) -> None:
    assert name in names


def test_the_wheel_has_nothing_but_the_packages(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"federation", "director", "envoy"}
