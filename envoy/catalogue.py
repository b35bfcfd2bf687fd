"""The shards this site offers, as a short-lived confined trainer found them.

Factories are code, so they run in a trainer and never here. A shard that fails is named, with what its factory said,
in the site's log; the others are offered. A factory that takes the whole trainer down is found by asking each shard
alone, the only one too, some times with a pause between: what killed the trainer may have been something else, such as
a machine out of memory, and a shard that is not offered now is refused to experiments for good.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from envoy.admission import OfferedShard
from federation.collaborator.trainers import shard_configs, trainer_settings
from federation.confinement.handle import TrainerHandle
from federation.errors import TaskError
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause
from federation.v1 import director_pb2, trainer_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federation.collaborator.config import ShardSettings, TrainerOptions
    from federation.runtime.clock import Clock

_log = logging.getLogger(__name__)
_MAX_DESCRIPTION_CHARACTERS = 1000
_DIED = "TrainerDied"
_MOST_DEATHS = 5
"""Trainers that may die of one shard alone, in a row; with the pauses it takes up to 8 s to know."""


class Catalogue:
    """What is on offer.

    Args:
        shards: as the owner configured them.
        options: how trainers run here.
        folder: for the describing trainer; made if missing.
        hidden: keys and state it must never see.
        timeout_s: how long it may take, seconds.
        clock: for the pause before a shard is asked again.

    Attributes:
        problems: why a shard is not offered, by its name.
        described: set once `describe` was done.
    """

    def __init__(
        self,
        shards: Sequence[ShardSettings],
        options: TrainerOptions,
        folder: Path,
        *,
        hidden: Sequence[Path],
        timeout_s: float,
        clock: Clock,
    ) -> None:
        self._shards = tuple(shards)
        self._options = options
        self._folder = folder
        self._hidden = tuple(hidden)
        self._timeout_s = timeout_s
        self._clock = clock
        self._offers: dict[str, director_pb2.ShardOffer] = {}
        self.problems: dict[str, str] = {}
        self.described = asyncio.Event()

    async def describe(self) -> None:
        """Load every shard once and note what it gives; failures go to `problems` and to the log.

        Raises:
            ConfigurationError: no trainer can be started at all.
        """
        self._offers.clear()
        self.problems.clear()
        try:
            described = await self._ask(self._shards)
        except TaskError as error:
            if len(self._shards) == 1 and error.error_class != _DIED:
                described = []
                self._note_death(self._shards[0], error)
            else:
                _log.warning("the trainer that describes all shards failed (%s); asking each alone", error.error_class)
                described = await self._ask_each()
        for shard, description in zip(self._shards, described, strict=False):
            self._note(shard, description)
        self.described.set()

    @property
    def offers(self) -> director_pb2.ShardOffers:
        """What the director is told."""
        return director_pb2.ShardOffers(shards=[self._offers[name] for name in sorted(self._offers)])

    @property
    def offered(self) -> dict[str, OfferedShard]:
        """What admission is told."""
        return {
            name: OfferedShard(
                kind=offer.kind, sample_shape=tuple(offer.sample_shape), target_shape=tuple(offer.target_shape)
            )
            for name, offer in self._offers.items()
        }

    def chosen(self, names: Sequence[str]) -> tuple[ShardSettings, ...]:
        """Return the settings of the named shards, in the order of the configuration."""
        return tuple(shard for shard in self._shards if shard.name in names)

    async def _ask(self, shards: Sequence[ShardSettings]) -> list[trainer_pb2.ShardDescription]:
        handle = TrainerHandle(
            trainer_settings(
                self._options,
                shards,
                name="trainer that describes shards",
                folder=self._folder / "process",
                log=self._folder / "trainer.log",
                workspace=self._folder / "workspace",
                hidden=self._hidden,
            )
        )
        await handle.start()
        try:
            described = await handle.describe(shard_configs(shards), timeout_s=self._timeout_s)
            await handle.end()
            return list(described.shards)
        finally:
            handle.kill()

    async def _ask_each(self) -> list[trainer_pb2.ShardDescription]:
        return [described for shard in self._shards for described in await self._ask_alone(shard)]

    async def _ask_alone(self, shard: ShardSettings) -> list[trainer_pb2.ShardDescription]:
        backoff = Backoff(first_s=0.5)
        while True:
            try:
                return await self._ask([shard])
            except TaskError as error:
                if error.error_class != _DIED or backoff.failures + 1 == _MOST_DEATHS:
                    return [
                        trainer_pb2.ShardDescription(
                            name=shard.name, error_class=error.error_class, error_text=error.traceback
                        )
                    ]
            delay_s = backoff.next_s()
            _log.warning("a trainer died of shard %s, %d in a row; asking again", shard.name, backoff.failures)
            await pause(self._clock, delay_s)

    def _note_death(self, shard: ShardSettings, error: TaskError) -> None:
        self.problems[shard.name] = error.error_class
        _log.error("shard %s cannot be offered: factory %s: %s", shard.name, shard.factory, error.traceback or error)

    def _note(self, shard: ShardSettings, found: trainer_pb2.ShardDescription) -> None:
        if found.error_class:
            self.problems[shard.name] = found.error_class
            _log.error(
                "shard %s cannot be offered: factory %s failed with %s\n%s",
                shard.name,
                shard.factory,
                found.error_class,
                found.error_text,
            )
            return
        if found.train_examples == 0:
            self.problems[shard.name] = "it has no training examples"
            _log.error("shard %s cannot be offered: factory %s gave no training examples", shard.name, shard.factory)
            return
        self._offers[shard.name] = director_pb2.ShardOffer(
            name=shard.name,
            kind=shard.kind,
            train_examples=found.train_examples,
            validation_examples=found.validation_examples,
            sample_shape=found.sample_shape,
            target_shape=found.target_shape,
            description=found.description[:_MAX_DESCRIPTION_CHARACTERS],
        )
