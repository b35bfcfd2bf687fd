"""Who does the work of the sites: the interface, and the executor that needs nothing.

An executor takes orders and gives answers, in any order; what it costs to get them there is its own affair. The engine
looks at answers by site name, so the number of workers and their speed change nothing about the result.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from federation.errors import FederationError
from federation.simulation.bench import Bench
from federation.simulation.memory import Arena

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from federation.names import RoundNumber, SiteName
    from federation.simulation.bench import (
        EvaluateAnswer,
        EvaluateOrder,
        KeepOrder,
        Premises,
        TrainAnswer,
        TrainOrder,
    )
    from federation.simulation.memory import Layout


class SimulationError(FederationError):
    """A worker could not do its work; what was committed before is intact."""


class Executor(Protocol):
    """The workers of a simulation.

    Attributes:
        arena: the block of memory they share with the engine.
    """

    arena: Arena

    def train(self, orders: Sequence[TrainOrder]) -> Iterator[TrainAnswer]:
        """Train; answers come as they are ready, one per order.

        Workers beside this process begin at once; where this process works itself, it begins when it is first asked for
        an answer.

        Raises:
            SimulationError: a worker died, twice.
        """
        ...

    def evaluate(self, orders: Sequence[EvaluateOrder]) -> Iterator[EvaluateAnswer]:
        """Evaluate; answers come as they are ready, one per order.

        Raises:
            SimulationError: a worker died, twice.
        """
        ...

    def foresee(self, sites: Sequence[SiteName], number: RoundNumber) -> None:
        """Hear which sites are likely to be trained next, and in which round; whoever is idle may prepare for it."""
        ...

    def keep(self, orders: Sequence[KeepOrder]) -> None:
        """Promote or drop what sites hold pending.

        Raises:
            StorageError: it cannot be moved.
        """
        ...

    def close(self) -> None:
        """End the workers and give up the memory."""
        ...


class SerialExecutor:
    """One site after another, in this process.

    torch's settings (threads, deterministic algorithms) are the plan's meanwhile, and as they were after `close`.

    Args:
        premises: what to work on.
        layout: of the memory.

    Raises:
        PlanError: the experiment does not make the model of the spec.
    """

    def __init__(self, premises: Premises, layout: Layout) -> None:
        self.arena = Arena(layout)
        self._torch = torch_settings()
        self._bench = Bench(premises, self.arena)

    def train(self, orders: Sequence[TrainOrder]) -> Iterator[TrainAnswer]:
        """See `Executor.train`."""
        yield from self._bench.train_all(orders)

    def evaluate(self, orders: Sequence[EvaluateOrder]) -> Iterator[EvaluateAnswer]:
        """See `Executor.evaluate`."""
        return map(self._bench.evaluate, orders)

    def foresee(self, sites: Sequence[SiteName], number: RoundNumber) -> None:
        """See `Executor.foresee`: nobody is idle."""

    def keep(self, orders: Sequence[KeepOrder]) -> None:
        """See `Executor.keep`."""
        for order in orders:
            self._bench.keep(order)

    def close(self) -> None:
        """See `Executor.close`."""
        restore_torch(self._torch)


def torch_settings() -> tuple[int, bool, bool] | None:
    """Return what a bench changes of torch in its process, for `restore_torch`; None: torch is not loaded."""
    if "torch" not in sys.modules:
        return None
    import torch

    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def restore_torch(settings: tuple[int, bool, bool] | None) -> None:
    """Put torch back as `torch_settings` found it."""
    if settings is None:
        return
    import torch

    threads, deterministic, warn_only = settings
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
