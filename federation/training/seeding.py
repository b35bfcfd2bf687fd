"""Global random generators under a seed, for code that uses them: model constructors and the author's own.

What is ours draws from generators of its own; these are for what we cannot reach. torch is seeded only if it is loaded.
"""

from __future__ import annotations

import functools
import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.errors import FederationError, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def seed_globals(seed: int) -> None:
    """Seed the global generators of Python, NumPy and, if it is loaded, torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        seed_torch(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's generators: the same streams as ``torch.manual_seed``.

    Without an accelerator that can only be the CPU's own: ``torch.manual_seed`` also notes a call per kind of device,
    each with the text of the whole stack, and keeps them all; that takes longer than a small site's training.
    """
    if _has_accelerator():
        sys.modules["torch"].manual_seed(seed)
    else:
        sys.modules["torch"].default_generator.manual_seed(seed)


@functools.cache
def _has_accelerator() -> bool:
    torch = sys.modules["torch"]
    return bool(torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for the block and give them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    torch_state = sys.modules["torch"].get_rng_state() if "torch" in sys.modules else None
    seed_globals(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch_state is not None:
            sys.modules["torch"].set_rng_state(torch_state)


def build_seeded(model: Callable[[], Any] | dict[str, Any], seed: int) -> Any:
    """Make a model under a seed; a dictionary of arrays is copied.

    Raises:
        PlanError: the callable failed.
    """
    if isinstance(model, dict):
        return {name: np.array(value) for name, value in model.items()}
    try:
        had_torch = "torch" in sys.modules
        with seeded(seed):
            made = model()
        if not had_torch and "torch" in sys.modules:  # it was first imported in there, so torch was not seeded yet
            with seeded(seed):
                made = model()
    except FederationError:
        raise
    except Exception as error:
        raise PlanError(f"making the model failed with {type(error).__name__}: {error}") from error
    return made
