"""`make test` gives a file to one worker, so that what a module makes once, such as a federation, is made once."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = """
import os, pytest
@pytest.mark.parametrize("number", range(4))
def test_notes_its_worker(number):
    open(__file__ + "." + os.environ["PYTEST_XDIST_WORKER"], "w").close()
"""


def test_a_file_is_run_by_one_worker(tmp_path: Path) -> None:
    [options] = re.findall(r"-m pytest -n \$\(WORKERS\) (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    names = ["test_a.py", "test_b.py", "test_c.py"]
    for name in names:
        (tmp_path / name).write_text(SOURCE)
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    alone["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-n", "2", *shlex.split(options), "-c", os.devnull]
    done = subprocess.run([*command, tmp_path], env=alone, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert sorted(path.stem for path in tmp_path.glob("test_?.py.gw?")) == names
