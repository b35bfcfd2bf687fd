"""Pages hold what they promise: links lead somewhere, commands and options exist, settings load, code runs."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer.main

from director.command import app as director_app
from director.config import DirectorSettings
from envoy.command import app as envoy_app
from envoy.config import EnvoySettings
from federation.algorithms.algorithm import SCALARS
from federation.algorithms.registry import BUILT_IN
from federation.client.command import app as federation_app
from federation.client.profile import Profile
from federation.data.partitions import partition_names
from federation.runtime.settings import load_settings

if TYPE_CHECKING:
    import click

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    + [page for folder in ("docs", "examples", "deploy") for page in (ROOT / folder).rglob("*.md")]
)
APPS = {"federation": federation_app, "director": director_app, "envoy": envoy_app}
SETTINGS = {"director.toml": DirectorSettings, "envoy.toml": EnvoySettings, "client.toml": Profile}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in _FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def commands() -> list[str]:
    """Every command of ours in a shell block, and every one in backticks that begins with a sub-command."""
    found = []
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
        prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
        lines += re.findall(r"`((?:federation|director|envoy) [a-z-][^`…]*)`", prose)
        found += [line for line in lines if line.split(" ")[0] in APPS]
    return sorted(set(found))


def slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Follow sub-commands as a shell would; options of a group come before its sub-command."""
    command = typer.main.get_command(APPS[words[0]])
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]  # type: ignore[attr-defined]
    return command, rest


def check_arguments(command: click.Command, arguments: list[str]) -> None:
    options = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    options["--help"] = options.get("--help", None)  # type: ignore[assignment]
    positional, waiting = [], list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            positional.append(word)
            continue
        name = word.partition("=")[0]
        assert name in options, f"no option {name}; there are {sorted(options)}"
        option = options[name]
        if option is not None and not getattr(option, "is_flag", False) and "=" not in word:
            assert waiting, f"{name} needs a value"
            waiting.pop(0)
    taken = [param for param in command.params if param.param_type_name == "argument"]
    many = any(param.nargs == -1 for param in taken)
    assert many or len(positional) <= len(taken), f"{positional} are more than the {len(taken)} arguments it takes"


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_documents_exist_with_their_options(line: str) -> None:
    command, arguments = find_command(shlex.split(line))
    check_arguments(command, arguments)


def simulations() -> set[tuple[str, int, str]]:
    """Folder, number of sites and division of every command in a shell block that simulates an example."""
    found = set()
    for line in commands():
        if re.match(r"federation (simulate|sweep) examples/", line):
            command, arguments = find_command(shlex.split(line))
            given = command.make_context("federation", arguments).params
            found.add((str(given["folder"]), given["sites"] or 10, given["partition"] or "iid"))
    return found


@pytest.mark.needs_torch
def test_the_data_of_simulations_in_the_documents_can_be_divided_as_they_say() -> None:
    from federation.simulation.population import shards_of, site_names
    from federation.training.importing import load_experiment

    asked = simulations()
    assert asked
    for folder, sites, partition in asked:
        parts = shards_of(load_experiment(ROOT / folder), site_names(sites), None, partition, 0)
        assert len(parts) == sites


def test_every_partition_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert [form for form in partition_names() if f"`{form}`" not in page] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("federation submitt stays", "arguments"),
        ("federation show x --jsn", "--jsn"),
        ("director --confg director.toml", "--confg"),
        ("envoy approve a b", "arguments"),
    ],
)
def test_a_command_that_does_not_exist_would_be_noticed(line: str, said: str) -> None:
    command, arguments = find_command(shlex.split(line))
    with pytest.raises(AssertionError, match=said):
        check_arguments(command, arguments)


def test_readme_walks_through_every_step() -> None:
    text = "\n".join(blocks(ROOT / "README.md", "bash"))
    for step in (
        "make quickstart",
        "federation pki init",
        "federation pki issue director",
        "federation pki join-token",
        "federation pki enrol",
        "federation pki issue user",
        "federation pki signing-key",
        "federation pki fingerprint",
        "federation pki pin",
        "director --config",
        "envoy --config",
        "federation doctor",
        "federation submit",
        "federation download",
        "federation report",
    ):
        assert step in text, step


def test_the_ladder_of_packages_is_the_one_that_lint_checks() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    layers = contracts["importlinter:contract:layers"]["layers"].split("\n")
    # What stands in brackets there may be missing; of that, `testing` alone is not.
    rows = [[name for name in row.split(" | ") if name == "(testing)" or "(" not in name] for row in layers if row]
    checked = " ▸ ".join(" | ".join(row).strip("()") for row in rows)
    (shown,) = (block for block in blocks(ROOT / "docs/architecture.md", "") if "▸" in block)
    assert " ".join(shown.split()) == checked


def test_what_leaves_a_silo_names_every_payload_that_a_method_sends() -> None:
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    told = text[text.index("## What leaves a silo") : text.index("Never: data")]
    sent = {name for method in BUILT_IN.values() for name in method.vectors}
    sent |= {SCALARS for method in BUILT_IN.values() if method.scalars}
    assert sent and not [name for name in sorted(sent) if f"`{name}`" not in told]


def test_make_targets_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set()
    for page in PAGES:
        for block in blocks(page, "bash"):
            named |= set(re.findall(r"^make ([a-z-]+)", block, re.MULTILINE))
        named |= set(re.findall(r"`make ([a-z-]+)", _FENCE.sub("", page.read_text(encoding="utf-8"))))
    assert named and named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(title) for title in titles}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_folder_of_somebodys_machine(page: Path) -> None:
    assert re.search(r"/(work|root|home|tmp|Users)/", page.read_text(encoding="utf-8")) is None


def settings_blocks() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page, "toml"):
            first = block.splitlines()[0]
            if first.startswith("# ") and first[2:] in SETTINGS:
                found.append((first[2:], block))
    return found


@pytest.mark.parametrize(("name", "text"), settings_blocks())
def test_settings_in_the_documents_are_accepted(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert isinstance(load_settings(SETTINGS[name], path, {}), SETTINGS[name])


def test_readme_shows_a_settings_file_of_each_kind() -> None:
    assert {name for name, _ in settings_blocks()} == set(SETTINGS)


def test_toml_in_the_documents_is_toml() -> None:
    found = [block for page in PAGES for block in blocks(page, "toml")]
    assert found and all(tomllib.loads(block) for block in found)


@pytest.mark.needs_torch
def test_shard_and_experiment_of_the_readme_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from federation.data import check_shapes, load_shard
    from federation.training.importing import load_experiment

    shard_code, experiment_code, _ = blocks(ROOT / "README.md", "python")
    (tmp_path / "wards.py").write_text(shard_code)
    (tmp_path / "stays").mkdir()
    (tmp_path / "stays" / "experiment.py").write_text(experiment_code)
    table = np.arange(100, dtype=np.float32).reshape(20, 5)
    table[:, -1] = np.arange(20) % 2
    np.savetxt(tmp_path / "wards.csv", table, delimiter=",", header="a,b,c,d,long", comments="")
    monkeypatch.syspath_prepend(tmp_path)
    (shard_table,) = [tomllib.loads(text)["shards"][0] for name, text in settings_blocks() if name == "envoy.toml"]
    assert shard_table["factory"] == "wards:Wards"
    shard = load_shard("wards", shard_table["factory"], {"path": tmp_path / "wards.csv"})
    experiment = load_experiment(tmp_path / "stays")
    check_shapes("wards", shard, experiment.sample_shape, experiment.target_shape)
    assert experiment.shard == shard_table["kind"]
    assert experiment.build().spec.name == "stays"


def test_python_in_the_readme_compiles() -> None:
    found = blocks(ROOT / "README.md", "python")
    assert found and all(compile(block, "README.md", "exec").co_code for block in found)


def test_prometheus_sample_reads_metrics_and_discovery_of_both_daemons() -> None:
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    jobs = re.findall(r"job_name: (\w+)", text)
    assert jobs == ["director", "aggregators", "envoy", "collaborators"]
    assert re.findall(r"url: http://127\.0\.0\.1:\d+(/\S+)", text) == ["/discovery", "/discovery"]


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("*.toml")), ids=lambda path: path.name)
def test_sample_settings_are_accepted(path: Path) -> None:
    assert isinstance(load_settings(SETTINGS[path.name], path, {}), SETTINGS[path.name])
