"""How asynchronous methods gather updates: each site answers a task of its own, and several rounds' lie side by side.

Rules:

1. The journal says that a site is asked, and the version it trains from is kept, before it is told. So a restart knows
   whose answer to which task still comes.
2. An update must look like its site's own task: round, attempt, and digest of the version. It is refused once it is
   older than the method takes, wherever it is on its way.
3. What waits in the buffer lies in the spool under the round of its task, with its place in the order of arrival.
4. A commit or miss settles those that counted, were refused, failed or are lost when it is decided, and no others: only
   their uploads are ended, their updates given up, and versions that nobody needs any more. Its journal line says who
   goes on with what.
5. After a restart the same updates wait in the same order. A site whose version went with a power loss is asked anew.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from federation.aggregator.ledger import Overlap
from federation.aggregator.versions import Versions
from federation.names import PayloadName
from federation.rounds import events
from federation.rounds.admission import Expectation
from federation.rounds.asynchronous import AsyncMachine
from federation.telemetry.logs import get_logger
from federation.wire.payloads import MODEL, OPTIMIZER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from federation.aggregator.admitted import AdmittedUpdate
    from federation.aggregator.broadcast import Offer, Offers
    from federation.aggregator.gathering import Asking, Setting
    from federation.names import RoundNumber, SiteName
    from federation.rounds.history import RoundRecord
    from federation.storage.spool import SpooledUpdate, UpdateKey
    from federation.wire.payloads import Payload


class BufferGathering:
    """Gathers updates into a buffer. Implements `Gathering`.

    Args:
        setting: what it works with.
        offers: where sites find what they are to fetch.
    """

    asks_at_once = False
    machine: AsyncMachine

    def __init__(self, setting: Setting, offers: Offers) -> None:
        self._setting = setting
        self._stores = setting.stores
        self._versions = Versions(setting.stores.checkpoints.folder / "versions", offers)
        self._algorithm = setting.stores.checkpoints.algorithm
        self._kept: dict[SiteName, Asking] = {}
        self._settled: dict[SiteName, Asking] = {}
        self._kept_versions: set[RoundNumber] = set()
        self._log = get_logger(__name__).bind(experiment=setting.experiment)

    @property
    def deadline_s(self) -> float | None:
        """See `Gathering.deadline_s`: a task has the plan's time from when it is sent, whenever its round closes."""
        return self._setting.spec.plan.deadline_s

    async def open(self) -> int:
        """See `Gathering.open`."""
        standpoint, spec = self._stores.ledger.standpoint, self._setting.spec
        asked = dict(standpoint.asked)
        recovered = await self._stores.do(
            self._stores.spool.recover, lambda key: asked.get(key.site) == (key.round, key.attempt)
        )
        recovered.sort(key=lambda update: update.facts["arrival"])
        asked = await self._recover_versions(asked, [update.key.site for update in recovered])
        waiting = tuple(update.key.site for update in recovered if update.key.site in asked)
        for update in recovered:
            if update.key.site not in asked:  # its site is asked anew, and must not be told that this one counts
                await self._stores.do(self._stores.spool.discard, update)
        self._setting.uploads.arrivals = itertools.count(1 + max(map(_arrival, recovered), default=0))
        self.machine = AsyncMachine(
            spec.plan,
            events.Resume(
                round=standpoint.round,
                attempt=standpoint.attempt,
                admitted=waiting,
                expected=standpoint.expected
                if standpoint.knows_present
                else tuple(sorted({*standpoint.expected, *asked})),
                score=standpoint.score,
                suspicion=standpoint.suspicion,
                asked=asked,
                training=tuple(sorted(asked.keys() - set(waiting))),
                draws=standpoint.draws,
            ),
            buffer=self._algorithm.buffer_size(spec.plan),
            max_staleness=self._algorithm.stalest(),
            ends_at_deadline=self._algorithm.ends_at_deadline,
            weights=self._setting.weights,
        )
        return len(waiting)

    async def _recover_versions(
        self, asked: dict[SiteName, Asking], waiting: Iterable[SiteName]
    ) -> dict[SiteName, Asking]:
        """Offer the versions that are needed, and return the tasks that can still be answered."""
        names = [MODEL, OPTIMIZER, *map(PayloadName, self._algorithm.broadcast)]
        needed = self._needed(asked, waiting)
        await self._stores.do(self._versions.unlink, needed)
        for number in sorted(needed):
            offers = await self._stores.do(self._versions.find, number, names)
            if offers:
                self._versions.add(number, offers)
        lost = {site for site, (number, _) in asked.items() if number in needed and number not in self._versions}
        if lost:
            self._log.warning("versions are gone: sites are asked anew", sites=sorted(lost))
        return {site: task for site, task in asked.items() if site not in lost}

    def _needed(self, tasks: Mapping[SiteName, Asking], waiting: Iterable[SiteName]) -> set[RoundNumber]:
        """Return the versions that some task still needs: what waits needs its own only to be rebased."""
        spared = set() if self._algorithm.needs_base else set(waiting)
        return {number for site, (number, _) in tasks.items() if site not in spared}

    # --- what uploads and service ask

    def _task(self, site: SiteName) -> Asking | None:
        """Return the task that a site works on, or whose answer waits in the buffer."""
        machine = self.machine
        if machine.is_asked(site) or machine.is_admitted(site):
            return machine.task_of(site)
        return None

    def expectation(self, site: SiteName) -> Expectation:
        """See `Gathering.expectation`: that of the site's own task."""
        setting, machine = self._setting, self.machine
        task = self._task(site)
        number, attempt = task or (machine.round, machine.attempt)
        return Expectation(
            experiment=setting.experiment,
            epoch=setting.epoch,
            round=number,
            attempt=attempt,
            is_open=not machine.has_closed,
            model_digest=self._versions.digest(number) or setting.models.digest,
            payloads=setting.uploads.expected,
            metrics=setting.spec.metrics,
            staleness=machine.staleness(site) if task else 0,
            max_staleness=self._algorithm.stalest(),
        )

    def is_over(self, site: SiteName, asking: Asking) -> bool:
        """See `Gathering.is_over`."""
        standpoint = self._stores.ledger.standpoint
        return asking < (standpoint.round, standpoint.attempt) and asking != self._task(site)

    def is_present(self, site: SiteName, round_number: int) -> bool:
        """See `Gathering.is_present`."""
        task = self._task(site)
        return task is not None and task[0] == round_number

    # --- asking

    async def prepare(self, action: events.AskTrain) -> events.AskTrain:
        """See `Gathering.prepare`: rule 1."""
        asking = (action.round, action.attempt)
        sites = self._still(action)
        self._setting.uploads.turn_to(sites, asking)
        known = self._stores.ledger.standpoint.asked
        new = [site for site in sites if known.get(site) != asking]
        payloads = [offer.payload for offer in self._setting.models.for_training]
        is_first = bool(sites) and action.round not in self._versions
        if is_first:
            self._versions.add(action.round, await self._stores.do(self._make_version, action.round, payloads))
        if new:
            await self._stores.do(lambda: self._stores.ledger.record_asked(asking, new, draws=action.draws))
        return replace(action, sites=self._still(action))

    def _still(self, action: events.AskTrain) -> tuple[SiteName, ...]:
        """Return those of the sites that have this task now: some may have been lost since it was given."""
        asking, machine = (action.round, action.attempt), self.machine
        return tuple(site for site in action.sites if machine.is_asked(site) and machine.task_of(site) == asking)

    def _make_version(self, number: RoundNumber, payloads: Sequence[Payload]) -> list[Offer]:
        file_of = self._stores.checkpoints.file_of
        return self._versions.link(number, [(payload, file_of(payload.name)) for payload in payloads])

    def offers(self, action: events.AskTrain) -> list[Offer]:
        """See `Gathering.offers`."""
        return self._versions.offers(action.round)

    # --- making a version

    def entered(self, phase: events.Phase) -> None:
        """See `Gathering.entered`: uploads go on, whatever is made meanwhile."""

    def updates(self, action: events.Combine) -> dict[SiteName, AdmittedUpdate]:
        """See `Gathering.updates`."""
        return {site: self._setting.uploads.admitted_of(site, action.asked[site]) for site in action.sites}

    def base(self, update: AdmittedUpdate) -> Path | None:
        """See `Gathering.base`."""
        return self._versions.model_path(update.announcement.round) if self._algorithm.needs_base else None

    async def settle(self, action: events.Commit | events.RecordMiss) -> dict[SiteName, bytes]:
        """See `Gathering.settle`: rule 4."""
        machine, uploads = self.machine, self._setting.uploads
        self._settled = machine.settling
        self._kept = {site: machine.task_of(site) for site in machine.standings if site not in self._settled}
        uploads.close_attempt(but=self._kept)
        await uploads.settle(but=self._kept)
        ids = {site: uploads.update_id(site, number) for site, (number, _) in self._settled.items()}
        uploads.forget_ids(but=self._kept)
        self._kept_versions = self._needed(self._kept, machine.waiting)
        self._versions.retire(self._kept_versions)
        return {site: update_id for site, update_id in ids.items() if update_id is not None}

    def write_commit(self, action: events.Commit, record: RoundRecord, ids: Mapping[SiteName, bytes]) -> RoundRecord:
        """See `Gathering.write_commit`."""
        return self._stores.ledger.record_committed(
            record,
            attempt=action.attempt,
            score=action.score,
            updates=ids,
            suspicion=action.suspicion,
            overlap=self._overlap(),
        )

    def write_miss(self, action: events.RecordMiss, ids: Mapping[SiteName, bytes]) -> None:
        """See `Gathering.write_miss`."""
        self._stores.ledger.record_missed(
            action.round, action.attempt, reason=action.reason, updates=ids, overlap=self._overlap()
        )
        self._release()

    def release(self, action: events.Commit) -> None:
        """See `Gathering.release`."""
        self._release()

    def _overlap(self) -> Overlap:
        return Overlap(settled=self._settled, asked=self._kept)

    def _release(self) -> None:
        self._stores.spool.release_others(self._is_kept)
        self._versions.unlink(self._kept_versions)

    def _is_kept(self, key: UpdateKey) -> bool:
        return self._kept.get(key.site) == (key.round, key.attempt)


def _arrival(update: SpooledUpdate) -> int:
    return int(update.facts["arrival"])
