"""Which files a Python interpreter needs to import federation and its packages.

The interpreter is asked itself, because a silo's owner may configure one that is not ours. Only the folders that hold
programs and packages are named, never a prefix or a checkout as a whole: keys and data often lie beside them.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARTS_OF_PREFIX = ("bin", "lib", "lib64", "include", "share", "pyvenv.cfg")
_PROBE_S = 60.0
_PROBE = """
import importlib.util, json, os, sys
spec = importlib.util.find_spec("federation")
print(json.dumps({
    "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix],
    "path": [os.path.abspath(entry) for entry in sys.path if entry],
    "federation": list(spec.submodule_search_locations or []) if spec else [],
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python interpreter and what it must be able to read.

    Attributes:
        executable: the program, absolute; not resolved, since a virtual environment is told by its link.
        readable: absolute folders and files, in no order; system libraries below /usr and /lib are left out.
    """

    executable: Path
    readable: tuple[Path, ...]


def environment_to_import(python_path: Sequence[Path]) -> dict[str, str]:
    """Return the variables that decide what a trainer can import, and nothing else."""
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    if python_path:
        environment["PYTHONPATH"] = ":".join(str(folder) for folder in python_path)
    return environment


def examine(executable: Path, python_path: Sequence[Path] = ()) -> Interpreter:
    """Ask an interpreter what it needs; blocks for as long as Python takes to start.

    Args:
        executable: the interpreter a silo's owner configured.
        python_path: folders it is to import from besides its own, absolute.

    Raises:
        ConfigurationError: it cannot be run, or federation is not installed for it.
    """
    executable = executable.absolute()
    try:
        done = subprocess.run(
            # -P keeps the present folder off the path: whatever lies there is nobody's package.
            [str(executable), "-P", "-c", _PROBE],
            env=environment_to_import(python_path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_S,
            check=True,
        )
        answer = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-300:]
        raise ConfigurationError(f"interpreter {executable} is not a Python 3.11 or later: {said}") from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"interpreter {executable} cannot be run: {error}") from error
    if not answer["federation"]:
        raise ConfigurationError(
            f"federation is not installed for {executable}; run: {executable} -m pip install 'federation[torch]'"
        )
    return Interpreter(executable=executable, readable=_needed(executable, answer))


def _needed(executable: Path, answer: dict[str, list[str]]) -> tuple[Path, ...]:
    needed: set[Path] = {executable.parent, executable.resolve().parent}
    for prefix in {Path(text) for text in answer["prefixes"]}:
        # A link in a prefix, such as /opt/python -> /opt/python-3.11, is followed by some and not by others: give both.
        for spelling in {prefix, prefix.resolve()}:
            needed.update(spelling / part for part in _PARTS_OF_PREFIX)
    needed.update(Path(entry) for entry in answer["path"])
    needed.update(Path(folder) for folder in answer["federation"])
    return tuple(sorted(path for path in needed if path.exists() and not _is_system(path)))


def _is_system(path: Path) -> bool:
    return any(path.is_relative_to(root) for root in ("/usr", "/bin", "/lib", "/lib64", "/sbin"))
