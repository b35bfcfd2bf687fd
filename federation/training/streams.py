"""torch's random streams for threads that work side by side. Imports torch.

torch draws from generators that are global to a process, one per device, and dropout can be handed no other. Rules:

1. `OwnStreams` give a thread the streams that ``torch.manual_seed`` would give a process. Each operation that draws is
   caught as it is dispatched; under one lock the global generators are put where this thread's streams are, the
   operation runs, and they are put back. Drawing is quick, and on a GPU only its launch is under the lock.
2. What cannot be given to a thread is refused rather than wrong: drawing while gradients flow back, which is how
   activations are computed a second time and needs the stream of the first; and setting the state of the global
   generators (`guarded`).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from federation.errors import ConfigurationError
from federation.training.seeding import streams_of_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from federation.training.seeding import Streams

_lock = threading.Lock()


class SharedStreamError(ConfigurationError):
    """A task does with random generators what only a process of its own can do."""


def refusal(streams: Streams, what: str) -> SharedStreamError:
    """Note what a task did, and return the error to raise; an author's own ``except`` does not hide it."""
    streams.refused = f"the task {what}, which threads cannot do side by side: use --executor processes"
    return SharedStreamError(streams.refused)


def global_generators(device: str) -> list[torch.Generator]:
    """Return the generators that work on a device draws from: the CPU's, and those of CUDA if it is there."""
    if not device.startswith("cuda"):
        return [torch.default_generator]
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's stub
    return [torch.default_generator, *torch.cuda.default_generators]


class OwnStreams:
    """Streams of one thread. Implements `federation.training.seeding.Streams`.

    Args:
        device: where the thread's task computes, such as ``cpu`` or ``cuda:0``.

    Attributes:
        refused: what the task did that cannot be given to a thread; empty: nothing.
    """

    def __init__(self, device: str) -> None:
        self.refused = ""
        self._global = global_generators(device)
        self._own = [torch.Generator(generator.device) for generator in self._global]

    def seed(self, seed: int) -> None:
        """See `Streams.seed`."""
        for generator in self._own:
            generator.manual_seed(seed)

    def state(self) -> list[torch.Tensor]:
        """See `Streams.state`."""
        return [generator.get_state() for generator in self._own]

    def restore(self, state: list[torch.Tensor]) -> None:
        """See `Streams.restore`."""
        for generator, value in zip(self._own, state, strict=True):
            generator.set_state(value)

    @contextmanager
    def drawn_from(self) -> Iterator[None]:
        """Have what this thread draws in the block come from its own streams."""
        with _Caught(self):
            yield

    def draw(self, operation: Callable[[], Any]) -> Any:
        """Run an operation that draws, at this thread's place in its streams."""
        if torch._C._current_graph_task_id() != -1:
            raise refusal(
                self, "draws random numbers while gradients flow back (activation checkpointing with dropout?)"
            )
        with _lock:
            places = [generator.get_state() for generator in self._global]
            try:
                for generator, own in zip(self._global, self._own, strict=True):
                    generator.set_state(own.get_state())
                return operation()
            finally:
                for generator, own, place in zip(self._global, self._own, places, strict=True):
                    own.set_state(generator.get_state())
                    generator.set_state(place)


class _Caught(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stub
    """Looks at each operation of its thread, and of the backward passes it starts."""

    def __init__(self, streams: OwnStreams) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stub
        self._streams = streams

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and keywords.get("generator") is None:
            return self._streams.draw(lambda: func(*args, **keywords))
        return func(*args, **keywords)


@contextmanager
def guarded() -> Iterator[None]:
    """Have torch's functions for the state of its generators respect threads that have streams of their own.

    Seeding seeds the thread's own; setting a state, or seeding one kind of device, is refused there (rule 2). Other
    threads see no difference.
    """
    places = [torch, torch.random, torch.cuda, torch.cuda.random]
    names = ("manual_seed", "seed", "set_rng_state", "set_rng_state_all", "manual_seed_all", "seed_all")
    before = [(place, name, getattr(place, name)) for place in places for name in names if hasattr(place, name)]
    for place, name, function in before:
        is_plain_seed = name == "manual_seed" and place in (torch, torch.random)
        setattr(place, name, _seeding(function) if is_plain_seed else _refusing(name, function))
    try:
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def _seeding(function: Callable[..., Any]) -> Callable[..., Any]:
    def manual_seed(seed: int) -> Any:
        own = streams_of_thread()
        if own is None:
            return function(seed)
        own.seed(int(seed))
        return torch.default_generator

    return manual_seed


def _refusing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def guard(*args: Any, **kwargs: Any) -> Any:
        own = streams_of_thread()
        if own is None:
            return function(*args, **kwargs)
        raise refusal(own, f"calls torch's {name}()")

    return guard
