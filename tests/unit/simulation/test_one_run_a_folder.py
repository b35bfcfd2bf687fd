"""A run folder has one run at a time; who comes second is told who is first, and who was killed is in nobody's way."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from federation.client.exits import Exit
from federation.errors import ConflictError, PlanError
from federation.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation import Experiment
    from federation.rounds.history import RoundRecord

    Make = Callable[..., Experiment]


def test_another_process_is_refused_and_the_first_run_goes_on(source: Path, tmp_path: Path) -> None:
    second: list[subprocess.CompletedProcess[str]] = []

    def run_another(record: RoundRecord) -> None:
        if record.round == 2:
            command = [sys.executable, "-m", "federation.client.command", "simulate", str(source), "--fresh"]
            command += ["--out", str(tmp_path / "run")]
            second.append(subprocess.run(command, check=False, capture_output=True, text=True))

    result = simulate(source, sites=4, folder=tmp_path / "run", on_round=run_another, command="simulate line")
    assert second[0].returncode == Exit.REFUSED
    who = f"is in use by process {os.getpid()} on {os.uname().nodename} (simulate line)"
    assert who in " ".join(second[0].stderr.split()) and "choose another folder" in " ".join(second[0].stderr.split())
    assert result.outcome == "completed"
    again = simulate(source, sites=4, folder=tmp_path / "run")
    assert again.records == result.records and len(again.records) == 3


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_run_is_refused_before_its_experiment_is_loaded(make: Make, tmp_path: Path, resume: bool) -> None:
    def run_another(record: RoundRecord) -> None:
        with pytest.raises(ConflictError, match=f"in use by process {os.getpid()} on"):
            simulate(tmp_path / "nowhere", folder=tmp_path / "run", resume=resume)

    assert simulate(make(rounds=1), sites=3, folder=tmp_path / "run", on_round=run_another).outcome == "completed"


def test_a_run_leaves_no_lock_and_one_that_could_not_begin_leaves_no_folder(make: Make, tmp_path: Path) -> None:
    simulate(make(), sites=3, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "running").exists()
    with pytest.raises(PlanError):
        simulate(make(), sites=3, hostile=2, folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()


KILLED = """
import os, sys
from federation.simulation import simulate

def kill(record):
    if record.round == 2:
        os.kill(os.getpid(), 9)

simulate(sys.argv[1], sites=4, folder=sys.argv[2], on_round=kill)
"""


def test_a_killed_run_blocks_nobody(source: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(tmp_path / "run")], check=False)
    assert done.returncode == -9
    assert (tmp_path / "run" / "running").exists()
    assert simulate(source, sites=4, folder=tmp_path / "run").outcome == "completed"


KILLING = """
    import os, signal

    def kill(self, model, samples, targets):
        os.write(1, b"%d\\n" % os.getpid())
        os.kill(int(os.environ["THE_RUN"]), 9)
        signal.signal(signal.SIGALRM, lambda *_: os.write(1, b"worked on\\n"))
        signal.alarm(20)
        signal.pause()
        os._exit(1)

    LeastSquares.gradient = kill
"""
KILLED_WITH_WORKERS = """
import os, sys
from federation.simulation import simulate

os.environ["THE_RUN"] = str(os.getpid())
simulate(sys.argv[1], sites=4, folder=sys.argv[2], workers=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers end when they are done")
def test_workers_of_a_killed_run_end_in_the_middle_of_their_work(source: Path, tmp_path: Path) -> None:
    whole = (source / "experiment.py").read_text()
    (source / "experiment.py").write_text(whole + textwrap.dedent(KILLING))
    command = [sys.executable, "-c", KILLED_WITH_WORKERS, str(source), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        workers = killed.stdout.read().split("\n")[:-1]  # ends when all that could write have ended
    assert killed.returncode == -9
    assert workers and "worked on" not in workers
    for worker in map(int, workers):
        with contextlib.suppress(ProcessLookupError):
            ended = os.pidfd_open(worker)
            select.select([ended], [], [])
            os.close(ended)
    (source / "experiment.py").write_text(whole)
    assert simulate(source, sites=4, folder=tmp_path / "run", resume=False).outcome == "completed"
