"""A sweep that is killed, over real processes: its runs end with it, and the same command goes on with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
EXPERIMENT = """
import os, signal, threading
import numpy as np
from federation import Experiment, Plan


class Halves:
    def train(self, model, data, round):
        if (round.number, os.environ.get("WHAT")) == (2, "stop") and not hasattr(self, "asked"):
            self.asked = True  # by the first site alone: a second Ctrl-C would end it at once
            os.kill(os.getpid(), signal.SIGINT)  # this round is ended and a checkpoint kept
        if (round.number, os.environ.get("WHAT")) == (3, "hold"):
            self.held = open(os.environ["HELD"], "w")  # open for as long as this process lives
            print(os.getpid(), file=self.held, flush=True)
            threading.Event().wait()
        model["w"] /= 2
        return {"loss": float(model["w"][0])}

    def evaluate(self, model, data):
        return {"loss": float(model["w"][0])}


experiment = Experiment(name="halves", model={"w": np.ones(3)}, task=Halves(), shard="digits", plan=Plan(rounds=5),
                        data="federation.data.samples:WholeDigits")
"""


def sweep(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "federation", "sweep", str(folder / "halves"), "--sites", "2", "--seeds", "0:2", "-j",
         "2", "--out", str(folder / "runs"), *arguments],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_sweep_that_is_killed_leaves_no_run_going_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "halves").mkdir()
    (tmp_path / "halves" / "experiment.py").write_text(EXPERIMENT)
    held = tmp_path / "held"
    os.mkfifo(held)
    stopped = sweep(tmp_path, WHAT="stop")
    assert stopped.communicate()[0].count("exit 130") == 2

    killed = sweep(tmp_path, WHAT="hold", HELD=str(held))
    with ExitStack() as cleaning, held.open() as holders:
        cleaning.callback(killed.communicate)
        cleaning.callback(killed.kill)
        for _ in range(2):
            cell = os.pidfd_open(int(holders.readline()))
            cleaning.callback(os.close, cell)
            cleaning.callback(_kill, cell)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        assert holders.read() == ""  # comes to its end when no process holds it any more

    again = sweep(tmp_path)
    told = again.communicate()[0]
    assert again.returncode == 0, told
    assert told.count("done, went on after round 2 ") == 2, told
    for head in (tmp_path / "runs").glob("*/run.json"):
        assert json.loads(head.read_text())["outcome"] == "completed"
        rounds = [json.loads(line)["round"] for line in (head.parent / "history.jsonl").read_text().splitlines()]
        assert rounds == [1, 2, 3, 4, 5]
    once_more = sweep(tmp_path, "--json")
    documents = [json.loads(line) for line in once_more.communicate()[0].splitlines()]
    assert [(document["skipped"], document["went_on_after"]) for document in documents] == [(True, 0)] * 2


def _kill(cell: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(cell, signal.SIGKILL)
