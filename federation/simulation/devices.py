"""Where simulated sites compute: a choice made for all of them, in place of what their task says.

Rules:

1. ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA if it is there, else the CPU. None: as the task says.
2. A task says where it computes by an attribute ``device``, and is moved by a method ``on(device)`` that returns it for
   another device; `SupervisedTask` has both. A task without them computes where its author decided: it is refused for
   CUDA, taken to be on the CPU, and left alone by ``auto``.
3. On CUDA cuBLAS is given a workspace for each stream (``CUBLAS_WORKSPACE_CONFIG``), unless it was given one already:
   else which of several streams comes first would show in the bits.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import re
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError, PlanError

if TYPE_CHECKING:
    from federation.training.experiment import Experiment

_FORM = re.compile(r"cpu|auto|cuda(:\d+)?")


def device_of(experiment: Experiment) -> str:
    """Return where an experiment's task says it computes."""
    return str(getattr(experiment.task, "device", "cpu"))


def choose_device(name: str | None) -> str | None:
    """Return ``cpu``, ``cuda`` or ``cuda:N`` for what was asked; None: nothing was.

    Raises:
        ConfigurationError: there is no such device here.
    """
    if name is None:
        return None
    if not _FORM.fullmatch(name):
        raise ConfigurationError(f"device {name!r}: give cpu, cuda, cuda:N or auto")
    count = 0 if name == "cpu" else _cuda_devices()
    if name == "auto":
        return "cuda" if count else "cpu"
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= count:
        raise ConfigurationError(
            f"device {name!r} is not here: torch sees {count} CUDA devices; use cpu or auto, or a torch for CUDA"
        )
    return name


def placed(experiment: Experiment, device: str | None, *, is_asked: bool = True) -> Experiment:
    """Return an experiment whose task computes on a device.

    Args:
        experiment: not changed.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: as its task says.
        is_asked: somebody wants just this device. False: a task that cannot be moved stays where it is.

    Raises:
        PlanError: the task cannot be moved there.
    """
    if device is not None and device != device_of(experiment):
        move = getattr(experiment.task, "on", None)
        if callable(move):
            experiment = copy.copy(experiment)
            experiment.task = move(device)
        elif is_asked:
            raise PlanError(
                f"task {type(experiment.task).__name__} has no method on(device), so it computes where its author "
                "decided; leave --device out, or use SupervisedTask"
            )
    if device_of(experiment).startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return experiment


def _cuda_devices() -> int:
    if importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()
