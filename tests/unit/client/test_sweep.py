"""A sweep runs what has not ended, skips what has, survives a failing cell, and passes Ctrl-C on once.

The child here is a small script in place of ``federation simulate``: it writes the run folder it is told to.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from federation.client.exits import Exit
from federation.client.grid import make_grid
from federation.client.sweep import Finished, Sweep
from federation.errors import ConflictError, StorageError
from federation.storage.ownership import owned
from federation.training.importing import code_digest

if TYPE_CHECKING:
    from pathlib import Path

CHILD = """
import json, pathlib, sys
args = sys.argv[1:]
out = pathlib.Path(args[args.index("--out") + 1])
if "a=bad" in args:
    sys.exit("federation: this one fails")
out.mkdir(parents=True, exist_ok=True)
(out / "count").write_text(str(len(list(out.glob("count"))) + 1))
(out / "run.json").write_text(json.dumps({"outcome": "completed", "args": args}))
"""


def sweep_of(tmp_path: Path, parallel: int = 2) -> Sweep:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    return Sweep(tmp_path / "digits", shared=["--sites", "3"], out=tmp_path / "runs", parallel=parallel,
                 command=[sys.executable, str(script)])  # fmt: skip


def test_every_cell_runs_once_and_a_second_sweep_skips_them(tmp_path: Path) -> None:
    cells, seen = make_grid([("a", ["1", "2"])], [0, 1]), list[Finished]()
    first = sweep_of(tmp_path).run(cells, seen.append)
    assert [finished.cell for finished in first] == cells
    assert {finished.code for finished in first} == {0} and len(seen) == 4
    again = sweep_of(tmp_path).run(cells, seen.append)
    assert all(finished.was_skipped for finished in again)
    assert {(finished.folder / "count").read_text() for finished in again} == {"1"}


def test_what_was_run_with_other_code_is_not_taken_for_this_sweeps(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "experiment.py").write_text("before")
    (cell,) = make_grid([("a", ["1"])])
    sweep = sweep_of(tmp_path)
    sweep.folder_of(cell).mkdir(parents=True)
    head = {"outcome": "completed", "conditions": {"code": code_digest(tmp_path / "digits")}}
    (sweep.folder_of(cell) / "run.json").write_text(json.dumps(head))
    (done,) = sweep.run([cell], lambda finished: None)
    assert done.was_skipped
    (tmp_path / "digits" / "experiment.py").write_text("after")
    with pytest.raises(ConflictError, match="have changed since: choose another --out"):
        sweep.run([cell], lambda finished: None)


def test_a_larger_grid_runs_only_what_is_new(tmp_path: Path) -> None:
    sweep_of(tmp_path).run(make_grid([("a", ["1"])], [0]), lambda finished: None)
    done = sweep_of(tmp_path).run(make_grid([("a", ["1", "3"])], [0]), lambda finished: None)
    assert [finished.was_skipped for finished in done] == [True, False]


def test_a_failing_cell_stops_no_other_and_says_why(tmp_path: Path) -> None:
    done = sweep_of(tmp_path, parallel=1).run(make_grid([("a", ["bad", "1"])]), lambda finished: None)
    assert [finished.code for finished in done] == [1, 0]
    assert done[0].message == "federation: this one fails"


def test_a_child_gets_experiment_shared_and_own_arguments(tmp_path: Path) -> None:
    (done,) = sweep_of(tmp_path).run(make_grid([("a", ["1"])], [7]), lambda finished: None)
    text = (done.folder / "run.json").read_text()
    assert all(f'"{word}"' in text for word in ("--sites", "3", "--set", "a=1", "--seed", "7"))
    assert str(tmp_path / "digits") in text


def test_each_cell_is_a_run_of_its_own_to_a_tracker_and_lies_where_it_did_without(tmp_path: Path) -> None:
    (cell,) = make_grid([("a", ["1"])], [7])
    plain = sweep_of(tmp_path)
    texts = ["csv", "csv:all", "csv:all/r.csv", "tensorboard", "tensorboard:tb", "mlflow:runs", "wandb"]
    tracked = Sweep(
        tmp_path / "digits", shared=["--sites", "3"], out=tmp_path / "runs", trackers=texts,
        command=[sys.executable, str(tmp_path / "child.py")],
    )  # fmt: skip
    (done,) = tracked.run([cell], lambda finished: None)
    assert done.folder == plain.folder_of(cell)
    args = json.loads((done.folder / "run.json").read_text())["args"]
    own = done.folder.name
    assert [args[place + 1] for place, word in enumerate(args) if word == "--tracker"] == [
        f"csv:{done.folder}", f"csv:all/{own}", f"csv:all/r-{own}.csv", f"tensorboard:{done.folder}/tensorboard",
        f"tensorboard:tb/{own}", "mlflow:runs", "wandb",
    ]  # fmt: skip


COUNTING = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
ended = len(list(out.parent.glob("*/run.json")))
out.mkdir()
(out / "run.json").write_text(json.dumps({"outcome": "completed", "ended": ended}))
"""


def test_the_first_cell_runs_alone_where_a_tracker_makes_a_database(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(COUNTING)
    sweep = Sweep(
        tmp_path / "digits", shared=[], out=tmp_path / "runs", parallel=4, trackers=["mlflow:runs"],
        command=[sys.executable, str(script)],
    )  # fmt: skip
    done = sweep.run(make_grid([("a", ["1", "2", "3", "4"])]), lambda finished: None)
    ended = [json.loads((finished.folder / "run.json").read_text())["ended"] for finished in done]
    assert ended[0] == 0 and min(ended[1:]) >= 1


def test_a_cell_that_another_command_runs_refuses_the_sweep_before_it_starts_any(tmp_path: Path) -> None:
    cells, sweep = make_grid([("a", ["1", "2"])]), sweep_of(tmp_path)
    with owned(sweep.folder_of(cells[1]), command="the other"), pytest.raises(ConflictError, match="the other"):
        sweep.run(cells, lambda finished: None)
    assert not list((tmp_path / "runs").iterdir())


def test_a_cell_that_another_command_has_begun_since_fails_and_its_log_stays(tmp_path: Path) -> None:
    cells = make_grid([("a", ["1", "2", "3"])])
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    sweep = Sweep(
        tmp_path, shared=[], out=tmp_path / "runs", trackers=["mlflow"], command=[sys.executable, str(script)]
    )
    taken = sweep.folder_of(cells[1])
    log = taken.with_suffix(".log")
    with ExitStack() as other:

        def after_first(finished: Finished) -> None:
            if finished.cell == cells[0]:  # it runs alone
                other.enter_context(owned(taken))
                log.write_text("the other's")

        done = sweep.run(cells, after_first)
        assert [finished.code for finished in done] == [0, Exit.REFUSED, 0]
        assert f"in use by process {os.getpid()}" in done[1].message
        assert log.read_text() == "the other's"


LOCKING = """
import fcntl, json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
try:
    fcntl.flock(out.with_suffix(".log").open("ab"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("locked", flush=True)
out.mkdir()
(out / "run.json").write_text(json.dumps({"outcome": "completed"}))
"""


def test_of_two_sweeps_that_start_one_cell_together_the_second_is_refused_and_the_log_stays(tmp_path: Path) -> None:
    (cell,) = make_grid([("a", ["1"])])
    script = tmp_path / "child.py"
    script.write_text(LOCKING)
    sweep = Sweep(tmp_path, shared=[], out=tmp_path / "runs", command=[sys.executable, str(script)])
    log = sweep.folder_of(cell).with_suffix(".log")
    log.parent.mkdir()
    with log.open("wb") as other:  # whose child has not taken the run folder yet
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"the other's")
        other.flush()
        (refused,) = sweep.run([cell], lambda finished: None)
    assert refused.code == Exit.REFUSED and "another sweep" in refused.message
    assert log.read_text() == "the other's"
    (done,) = sweep.run([cell], lambda finished: None)
    assert done.code == 0 and log.read_text() == "locked\n"


WAITING = """
import pathlib, signal, sys
def stop(*_):
    pathlib.Path(sys.argv[sys.argv.index("--out") + 1] + ".stopped").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
import os
os.write(os.open(READY, os.O_WRONLY), b"1")
signal.pause()
"""
RUNNER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a script starts without
from federation.client.grid import make_grid
from federation.client.sweep import Sweep
folder = Path(sys.argv[1])
sweep = Sweep(folder, shared=[], out=folder / "runs", command=[sys.executable, str(folder / "waiting.py")])
try:
    sweep.run(make_grid([("a", ["1", "2"])]), lambda finished: None)
except KeyboardInterrupt as interrupt:
    (folder / "said").write_text(str(interrupt))
    sys.exit(130)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_ctrl_c_lets_a_running_cell_stop_by_itself_and_starts_no_other(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    os.mkfifo(ready_file)  # it has a name: an inherited pipe would be closed on the way to the child
    (tmp_path / "waiting.py").write_text(WAITING.replace("READY", repr(str(ready_file))))
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)])
    with ready_file.open("rb") as ready:
        assert ready.read(1) == b"1"
    runner.send_signal(signal.SIGINT)
    assert runner.wait() == 130
    assert len(list((tmp_path / "runs").glob("*.stopped"))) == 1
    assert len(list((tmp_path / "runs").glob("*.log"))) == 1
    assert (tmp_path / "said").read_text() == "interrupted; 2 of 2 runs are left: the same command goes on with them"


MIXED = """
import sys
if "a=1" in " ".join(sys.argv):
    open(READY, "rb").read(1)  # the other has begun
    sys.exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_a_sweep_that_cannot_say_what_ended_leaves_nothing_running(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    os.mkfifo(ready_file)
    (tmp_path / "mixed.py").write_text((MIXED + WAITING).replace("READY", repr(str(ready_file))))
    out = tmp_path / "runs"
    command = [sys.executable, str(tmp_path / "mixed.py")]
    sweep = Sweep(tmp_path, shared=[], out=out, parallel=2, command=command)

    def show(finished: Finished) -> None:
        raise BrokenPipeError  # whoever read it, such as `head`, has gone

    first, second = make_grid([("a", ["1", "2"])])
    with pytest.raises(BrokenPipeError):
        sweep.run([first, second], show)
    assert sweep.folder_of(second).with_suffix(".stopped").exists()


def test_a_folder_for_runs_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sweep = Sweep(tmp_path, shared=[], out=tmp_path / "file" / "runs")
    with pytest.raises(StorageError, match=r"cannot write .*/file/runs: Not a directory"):
        sweep.run(make_grid([]), lambda finished: None)
