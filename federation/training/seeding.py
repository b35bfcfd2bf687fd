"""Global random generators under a seed, for code that uses them: model constructors and the author's own.

What is ours draws from generators of its own; these are for what we cannot reach. torch is seeded only if it is loaded.

Generators are global to a process. Where several threads work side by side, each has streams of its own instead
(`Streams`, `thread_streams`): seeding then seeds those, and leaves the global generators alone.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from federation.errors import FederationError, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Streams(Protocol):
    """The random streams of one thread, in place of torch's global generators.

    Attributes:
        refused: what the task did that cannot be given to a thread, and what to do instead; empty: nothing.
    """

    refused: str

    def seed(self, seed: int) -> None:
        """Begin anew: the same streams as ``torch.manual_seed``."""
        ...

    def state(self) -> Any:
        """Return where the streams are."""
        ...

    def restore(self, state: Any) -> None:
        """Go back to where they were."""
        ...


class Idle:
    """Streams of a thread whose task, as far as is known, never draws. Implements `Streams`.

    They do nothing, and cost nothing. Whoever uses them must look afterwards whether the global generators moved, and
    throw away what was made if they did.
    """

    refused = ""

    def seed(self, seed: int) -> None:
        """Do nothing."""

    def state(self) -> None:
        """Return nothing."""

    def restore(self, state: None) -> None:
        """Do nothing: had something been drawn, it must show."""


class _Thread(threading.local):
    streams: Streams | None = None


_thread = _Thread()


@contextmanager
def thread_streams(streams: Streams) -> Iterator[None]:
    """Have this thread draw from streams of its own for the block."""
    before, _thread.streams = _thread.streams, streams
    try:
        yield
    finally:
        _thread.streams = before


def streams_of_thread() -> Streams | None:
    """Return the streams this thread has of its own; None: the global generators are its."""
    return _thread.streams


@contextmanager
def streams_kept() -> Iterator[None]:
    """Give torch's random streams back as they were: this thread's own, or the global ones."""
    own = _thread.streams
    if own is not None:
        state = own.state()
        try:
            yield
        finally:
            own.restore(state)
        return
    torch = sys.modules["torch"]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def seed_globals(seed: int) -> None:
    """Seed the global generators of Python, NumPy and, if it is loaded, torch; or this thread's own streams."""
    if _thread.streams is not None:
        _thread.streams.seed(seed)
        return
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        seed_torch(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's generators: the same streams as ``torch.manual_seed``.

    Without an accelerator that can only be the CPU's own: ``torch.manual_seed`` also notes a call per kind of device,
    each with the text of the whole stack, and keeps them all; that takes longer than a small site's training.
    """
    if _thread.streams is not None:
        _thread.streams.seed(seed)
    elif _has_accelerator():
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
