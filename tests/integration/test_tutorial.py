"""The tutorial, by running it: its commands as they stand in the page, then its folder over the wire."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from federation.client.local import LocalFederation, LocalSite
from federation.client.runs import read_run

pytestmark = [pytest.mark.needs_torch, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
PROGRAMS = {"python": [sys.executable], "federation": [sys.executable, "-m", "federation.client.command"]}


def run(command: str, folder: Path) -> str:
    """Run one line of the page; what it writes under ``runs`` goes to a folder of the test."""
    program, *words = shlex.split(command)
    arguments = [*PROGRAMS[program], *(str(folder / word) if word.startswith("runs/") else word for word in words)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", name="steps")
def _steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Run steps 1 and 2 once; returns where runs lie and what each command said."""
    folder = tmp_path_factory.mktemp("tutorial")
    return folder, {command: run(command, folder) for command in COMMANDS if " submit " not in command}


def test_the_script_and_the_simulation_learn_alike(steps: tuple[Path, dict[str, str]]) -> None:
    folder, said = steps
    pooled = float(said["python examples/tutorial/centralised.py"].split()[1])
    assert pooled > 0.92
    even = read_run(folder / "runs/tutorial/iid").records[-1].metrics["accuracy"]
    assert even > pooled - 0.05


def test_runs_are_compared_and_swept(steps: tuple[Path, dict[str, str]]) -> None:
    folder, said = steps
    (table,) = [text for command, text in said.items() if " compare " in command]
    assert "scaffold" in table and "top_k:0.05" in table and "rounds to accuracy" in table
    assert (folder / "runs/tutorial/compare.html").read_text().startswith("<!doctype html>")
    assert len(list((folder / "runs/tutorial-sweep").glob("*/run.json"))) == 4


def test_the_same_folder_gives_the_same_model_in_a_federation(steps: tuple[Path, dict[str, str]]) -> None:
    folder, _ = steps
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    sites = []
    for part in range(3):
        (shard,) = tomllib.loads(block)["shards"]
        sites.append(
            LocalSite(name=f"site-{part:03d}", shards=[{**shard, "options": {**shard["options"], "part": part}}])
        )
    with LocalFederation(folder / "federation", sites=sites) as federation, federation.connect() as client:
        (command,) = [command for command in COMMANDS if " submit " in command]
        experiment = client.submit(ROOT / shlex.split(command)[2])
        assert client.wait(experiment).state == "completed"
        client.download_run(experiment, folder / "federated")
    over_wire, simulated = read_run(folder / "federated"), read_run(folder / "runs/tutorial/iid")
    assert [r.model_digest for r in over_wire.records] == [r.model_digest for r in simulated.records]
    assert json.loads((folder / "federated" / "run.json").read_text())["kind"] == "federated"
    assert (folder / "federated" / "model.safetensors").exists()
