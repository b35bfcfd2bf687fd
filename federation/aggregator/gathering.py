"""How updates are gathered, as far as files, uploads and messages are concerned: what the driver leaves to the mode.

`RoundGathering` is of methods that go round by round: all sites answer the same task, from the same model, and what is
in the spool is of one attempt. `federation.aggregator.buffering` has that of asynchronous methods.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from federation.aggregation.registry import trusted_site
from federation.rounds import events
from federation.rounds.admission import Expectation
from federation.rounds.asynchronous import Machine, machine_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from federation.aggregator.admitted import AdmittedUpdate
    from federation.aggregator.broadcast import Offer
    from federation.aggregator.checkpoints import Checkpoints
    from federation.aggregator.ledger import Ledger
    from federation.aggregator.models import Models
    from federation.aggregator.uploads import Uploads
    from federation.names import Attempt, Epoch, ExperimentId, RoundNumber, SiteName
    from federation.plan import ExperimentSpec
    from federation.rounds.history import RoundRecord
    from federation.storage.spool import Spool

Asking = tuple["RoundNumber", "Attempt"]
"""Round and attempt of a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What one experiment has on disk.

    Attributes:
        ledger: the open journal.
        checkpoints: model files.
        spool: uploads.
        disk: the one thread that has them.
    """

    ledger: Ledger
    checkpoints: Checkpoints
    spool: Spool
    disk: Executor

    async def do(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do something in the thread that has the disk."""
        return await asyncio.get_running_loop().run_in_executor(self.disk, work, *args)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a gathering works with.

    Attributes:
        experiment: its id.
        epoch: of this process.
        spec: plan and schemas.
        stores: what is on disk.
        models: the models in play.
        uploads: updates on their way in.
        weights: examples of each site, filled while it runs.
    """

    experiment: ExperimentId
    epoch: Epoch
    spec: ExperimentSpec
    stores: Stores
    models: Models
    uploads: Uploads
    weights: Mapping[SiteName, int]


class Gathering(Protocol):
    """What the driver asks of a mode."""

    @property
    def machine(self) -> Machine:
        """The round machine; there once `open` has returned."""

    @property
    def asks_at_once(self) -> bool:
        """Whether sites may be told a train task without `prepare`, if nothing is to be written down before it."""

    @property
    def deadline_s(self) -> float | None:
        """Seconds a site has for a train task; None: until the round's deadline."""

    async def open(self) -> int:
        """Recover the spool, make the machine, and return how many updates are in already.

        Raises:
            StorageError: the disk failed.
        """

    def expectation(self, site: SiteName) -> Expectation:
        """Return what an update of this site must look like now."""

    def is_over(self, site: SiteName, asking: Asking) -> bool:
        """Tell whether no answer of this site to a task is awaited any more, whatever became of it."""

    def is_present(self, site: SiteName, round_number: int) -> bool:
        """Tell whether the task a site was last asked to train is of this round."""

    def entered(self, phase: events.Phase) -> None:
        """Take in that a phase began."""

    async def prepare(self, action: events.AskTrain) -> events.AskTrain:
        """Make durable that sites are asked, and return whom to tell.

        Raises:
            StorageError: the disk failed.
        """

    def offers(self, action: events.AskTrain) -> list[Offer]:
        """Return the payloads of a train task."""

    def updates(self, action: events.Combine) -> dict[SiteName, AdmittedUpdate]:
        """Return what a candidate is to be made of, in name order."""

    def base(self, update: AdmittedUpdate) -> Path | None:
        """Return the file of the model an update starts from, if the method must know it."""

    async def settle(self, action: events.Commit | events.RecordMiss) -> dict[SiteName, bytes]:
        """See that no settled update is being received any more, and return the id of each."""

    def write_commit(self, action: events.Commit, record: RoundRecord, ids: Mapping[SiteName, bytes]) -> RoundRecord:
        """Write the journal line of a committed round and return its record with its sequence. Blocks."""

    def write_miss(self, action: events.RecordMiss, ids: Mapping[SiteName, bytes]) -> None:
        """Write the journal line of a missed attempt and drop its updates. Blocks."""

    def release(self, action: events.Commit) -> None:
        """Give up the files of what a committed round has settled. Blocks."""


class RoundGathering:
    """Gathers one attempt at one round at a time. Implements `Gathering`.

    Args:
        setting: what it works with.
    """

    asks_at_once = True
    deadline_s: float | None = None
    machine: Machine

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._stores = setting.stores

    async def open(self) -> int:
        """See `Gathering.open`."""
        standpoint, algorithm = self._stores.ledger.standpoint, self._stores.checkpoints.algorithm
        asking = (standpoint.round, standpoint.attempt)
        recovered = await self._stores.do(self._stores.spool.recover, lambda key: (key.round, key.attempt) == asking)
        spec = self._setting.spec
        self.machine = machine_for(
            spec.plan,
            "rounds",
            events.Resume(
                round=standpoint.round,
                attempt=standpoint.attempt,
                admitted=tuple(update.key.site for update in recovered),
                expected=standpoint.expected,
                pool=standpoint.drawn_from,
                standings=dict(standpoint.standings),
                score=standpoint.score,
                suspicion=standpoint.suspicion,
            ),
            asks_all=lambda number: algorithm.asks_all(spec, number),
            weights=self._setting.weights,
            trusted=trusted_site(spec.plan),
        )
        return len(recovered)

    def expectation(self, site: SiteName) -> Expectation:
        """See `Gathering.expectation`: the same for every site."""
        setting = self._setting
        return Expectation(
            experiment=setting.experiment,
            epoch=setting.epoch,
            round=self.machine.round,
            attempt=self.machine.attempt,
            is_open=not self.machine.has_closed,
            model_digest=setting.models.digest,
            payloads=setting.uploads.expected,
            metrics=setting.spec.metrics,
        )

    def is_over(self, site: SiteName, asking: Asking) -> bool:
        """See `Gathering.is_over`."""
        standpoint = self._stores.ledger.standpoint
        return asking < (standpoint.round, standpoint.attempt)

    def is_present(self, site: SiteName, round_number: int) -> bool:
        """See `Gathering.is_present`."""
        return round_number == self.machine.round

    def entered(self, phase: events.Phase) -> None:
        """See `Gathering.entered`: a closed attempt takes no more."""
        if phase in (events.Phase.AGGREGATE, events.Phase.MISSED):
            self._setting.uploads.close_attempt()

    async def prepare(self, action: events.AskTrain) -> events.AskTrain:
        """See `Gathering.prepare`: a restart asks again, and what is asked again is answered again."""
        machine = self.machine
        if (action.round, action.attempt) != (machine.round, machine.attempt):
            return replace(action, sites=())
        return replace(action, sites=tuple(site for site in action.sites if machine.is_asked(site)))

    def offers(self, action: events.AskTrain) -> list[Offer]:
        """See `Gathering.offers`."""
        return self._setting.models.for_training

    def updates(self, action: events.Combine) -> dict[SiteName, AdmittedUpdate]:
        """See `Gathering.updates`."""
        admitted = {update.site: update for update in self._setting.uploads.admitted(action.round)}
        return {site: admitted[site] for site in action.sites}

    def base(self, update: AdmittedUpdate) -> Path | None:
        """See `Gathering.base`: that is the present model."""
        return None

    async def settle(self, action: events.Commit | events.RecordMiss) -> dict[SiteName, bytes]:
        """See `Gathering.settle`."""
        await self._setting.uploads.settle()
        ids = self._setting.uploads.update_ids(action.round)
        self._setting.uploads.forget_ids()
        return ids

    def write_commit(self, action: events.Commit, record: RoundRecord, ids: Mapping[SiteName, bytes]) -> RoundRecord:
        """See `Gathering.write_commit`."""
        return self._stores.ledger.record_committed(
            record, attempt=action.attempt, score=action.score, updates=ids, suspicion=action.suspicion
        )

    def write_miss(self, action: events.RecordMiss, ids: Mapping[SiteName, bytes]) -> None:
        """See `Gathering.write_miss`."""
        self._stores.ledger.record_missed(
            action.round, action.attempt, reason=action.reason, updates=ids, standings=action.standings
        )
        self._stores.spool.release(action.round)

    def release(self, action: events.Commit) -> None:
        """See `Gathering.release`."""
        self._stores.spool.release(action.round)
