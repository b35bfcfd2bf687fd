"""Importing an experiment folder: its ``experiment.py`` and whatever lies beside it.

The folder comes first on ``sys.path`` and stays there, so that its modules can import each other, also later, from
inside a function. Modules of the same name from another folder loaded earlier in this process are dropped first: two
experiments may both have a ``model.py``. Whatever goes wrong is a `PlanError` that says file and line.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from federation.errors import FederationError, PlanError
from federation.training.experiment import Experiment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

FILE = "experiment.py"
_PREFIX = "_federation_experiment_"
_numbers = itertools.count(1)


def load_experiment(folder: str | Path, *, also_as: Sequence[str] = ()) -> Experiment:
    """Import ``experiment.py`` of a folder under a fresh name and return the ``experiment`` it defines.

    Runs the author's code: at home, or in a trainer.

    Args:
        folder: of the experiment.
        also_as: further names of the module, such as those another process pickled objects of its classes under.

    Raises:
        PlanError: no such file, it does not import, or it defines no `Experiment` called ``experiment``.
    """
    path = Path(folder).resolve() / FILE
    if not path.is_file():
        raise PlanError(f"{folder} has no {FILE}; an experiment folder needs one that defines `experiment`")
    module = _import(path)
    for name in also_as:
        sys.modules[name] = module
    found = getattr(module, "experiment", None)
    if not isinstance(found, Experiment):
        got = "nothing of that name" if found is None else f"a {type(found).__name__}"
        raise PlanError(f"{path} must define `experiment = Experiment(...)`; it has {got}")
    return found


def code_digest(folder: str | Path) -> str:
    """Return what tells one state of an experiment's code from another: SHA-256 of its Python files, hex.

    Hidden files and ``__pycache__`` do not count, nor do files that are no code: a run folder may lie inside.

    Raises:
        PlanError: a file cannot be read.
    """
    whole = hashlib.sha256()
    try:
        for root, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
            for name in sorted(name for name in files if name.endswith(".py") and not name.startswith(".")):
                path = Path(root, name)
                content = path.read_bytes()
                whole.update(f"{path.relative_to(folder).as_posix()}\n{len(content)}\n".encode() + content)
    except OSError as error:
        raise PlanError(f"{error.filename} cannot be read: {error.strerror}") from error
    return whole.hexdigest()


def names_of(folder: str | Path) -> tuple[str, ...]:
    """Return the names under which this process imported ``experiment.py`` of a folder, oldest first."""
    path = str(Path(folder).resolve() / FILE)
    loaded = [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == path]
    return tuple(name for name in loaded if name.startswith(_PREFIX))


def _import(path: Path) -> ModuleType:
    name = f"{_PREFIX}{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PlanError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    _forget_namesakes(path.parent)
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        sys.path.remove(folder)
        if isinstance(error, FederationError) and not isinstance(error, PlanError):
            raise
        raise PlanError(_explain(error, path.parent)) from error
    return module


def _forget_namesakes(folder: Path) -> None:
    for entry in folder.iterdir():
        name = entry.stem if entry.suffix == ".py" else entry.name
        module = sys.modules.get(name)
        if module is None or name in sys.stdlib_module_names or name in ("federation", "director", "envoy"):
            continue
        origin = getattr(module, "__file__", None)
        if origin is not None and not Path(origin).resolve().is_relative_to(folder):
            for loaded in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
                del sys.modules[loaded]


def _explain(error: BaseException, folder: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(folder))]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(folder / FILE)
    return f"{where}: {error}" if isinstance(error, PlanError) else f"{where}: {type(error).__name__}: {error}"
