"""A trainer that is there when it is wanted: started and prepared once, kept warm, replaced when it dies.

Rules:

1. It starts for the first task and stays; bundle, shards and model are loaded once.
2. A trainer that dies under an order is replaced and the order given again, a bounded number of times in a row: at once
   after the first death, then after growing pauses, so that what kills for some seconds (memory that others take, an
   operator's `kill -9`) does not use them up. One that misses its deadline is replaced for the next order only: the
   same order would hang again.
3. A pause is owed by whoever comes next: an order that is cancelled in it leaves what remains of it to the following.
4. Deaths are counted by kind of order, and only an order of that kind that succeeds makes the count start anew:
   otherwise a site that can evaluate, and dies of each training, would go on for ever.
5. What fails while it loads the experiment fails for ever: that is permanent.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from federation.confinement.handle import TrainerHandle
from federation.errors import TaskError
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from federation.confinement.handle import TrainerSettings
    from federation.runtime.clock import Clock
    from federation.v1 import trainer_pb2

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_TIMEOUT = "TrainerTimeout"


def _no_deaths() -> defaultdict[str, Backoff]:
    return defaultdict(lambda: Backoff(first_s=0.5))


@dataclass(slots=True, kw_only=True)
class WarmTrainer:
    """The trainer of one experiment and site.

    Attributes:
        settings: how to start it.
        order: what it loads; complete before the first `do`.
        max_deaths: deaths in a row, under orders of one kind, after which the site gives up.
        prepare_s: seconds it may take to load everything; None for no limit.
        clock: times the pauses.
        on_death: called at each death, for the metric.
        on_pause: called when an order begins to wait for a pause to pass: nothing is lost if it is cancelled then.
    """

    settings: TrainerSettings
    order: trainer_pb2.PrepareTrainer
    max_deaths: int
    prepare_s: float | None
    clock: Clock
    on_death: Callable[[], None]
    on_pause: Callable[[], None] = lambda: None
    _handle: TrainerHandle | None = None
    _prepared: trainer_pb2.TrainerPrepared | None = None
    _deaths: defaultdict[str, Backoff] = field(default_factory=_no_deaths)
    _not_before: float = 0.0  # on the monotonic clock
    _is_starting: bool = False
    _is_pausing: bool = False

    @property
    def is_pausing(self) -> bool:
        """Whether an order waits for the pause after a death to pass."""
        return self._is_pausing

    @property
    def trouble(self) -> str | None:
        """Why an order could not be given now; None while it is there or being prepared."""
        if self._is_pausing:
            return "it ended; another is started after a pause"
        if self._is_starting or (self._handle is not None and self._handle.is_alive):
            return None
        return "not started yet" if self._handle is None else "it ended; the next task starts another"

    async def prepare(self) -> trainer_pb2.TrainerPrepared:
        """Return what it loaded, starting it if it is not there.

        Raises:
            TaskError: it cannot be prepared; permanent.
            ConfigurationError: it cannot be started.
        """
        return await self.do("prepare", self._nothing)

    async def do(self, kind: str, order: Callable[[TrainerHandle], Awaitable[_T]]) -> _T:
        """Give an order, again if the trainer dies of it.

        Args:
            kind: of the order, by which deaths are counted.
            order: gives it to a trainer that is ready.

        Raises:
            TaskError: the order failed; permanent if the trainer cannot be prepared or died too often.
            ConfigurationError: it cannot be started.
        """
        deaths = self._deaths[kind]
        while True:
            handle: TrainerHandle | None = None
            try:
                handle = await self._ready()
                result = await order(handle)
                deaths.reset()
                return result
            except TaskError as error:
                if error.permanent or (handle is not None and handle.is_alive):
                    raise
                self.on_death()
                delay_s = deaths.next_s()
                if deaths.failures >= self.max_deaths:
                    raise TaskError(error.error_class, traceback=error.traceback, permanent=True) from error
                if error.error_class == _TIMEOUT:
                    raise
                if deaths.failures == 1:
                    delay_s = 0.0
                self._not_before = self.clock.monotonic() + delay_s
                _log.warning(
                    "the trainer ended (%s), %d in a row (%s); starting it again in %.1f s\n%s",
                    error.error_class,
                    deaths.failures,
                    kind,
                    delay_s,
                    error.traceback,
                )

    async def end(self, grace_s: float) -> None:
        """Let it finish within `grace_s` seconds, then end it."""
        handle, self._handle = self._handle, None
        if handle is not None:
            await handle.end(grace_s)

    def kill(self) -> None:
        """End it at once."""
        if self._handle is not None:
            self._handle.kill()

    async def _ready(self) -> TrainerHandle:
        if self._handle is not None and self._handle.is_alive:
            return self._handle
        await self._wait()
        self._is_starting = True
        try:
            return await self._replace()
        finally:
            self._is_starting = False

    async def _wait(self) -> None:
        """Let the pause after a death pass; cancelled, it is not over for the next order."""
        left_s = self._not_before - self.clock.monotonic()
        if left_s <= 0:
            return
        self._is_pausing = True
        try:
            self.on_pause()
            await pause(self.clock, left_s)
        finally:
            self._is_pausing = False

    async def _replace(self) -> TrainerHandle:
        """Start one and prepare it, in place of the one that is no more."""
        if self._handle is not None:
            await self.end(0.0)
        handle = TrainerHandle(self.settings)
        await handle.start()  # cancelled, it ends what it began; there is nothing to end before it is through
        self._handle = handle
        try:
            self._prepared = await handle.prepare(self.order, timeout_s=self.prepare_s)
        except TaskError as error:
            if handle.is_alive:
                # It says itself that the experiment does not load; it would say the same again.
                raise TaskError(error.error_class, traceback=error.traceback, permanent=True) from error
            raise
        return handle

    async def _nothing(self, _: TrainerHandle) -> trainer_pb2.TrainerPrepared:
        if self._prepared is None:
            raise RuntimeError("a trainer is ready only once it is prepared")
        return self._prepared
