"""Decides and sees to it: starts what can start, asks sites, heeds their answers, ends what is over.

Rules, in order:

1. News (an envoy came, a site answered, an experiment was submitted or ended) is put on an agenda and worked off by
   one task, in order: what one item decides the next one sees.
2. An experiment starts when `director.scheduling` says so: its epoch is granted by compare-and-set, then its
   aggregator is launched (`director.running`). Sites are asked when the aggregator says where it is reached.
3. An experiment whose sites have all answered, too few of them with yes, fails at once, naming why each refused. One
   that was away when the others were asked has not answered.
4. When the director ends an experiment its sites and its aggregator are told at once; when the aggregator ended it,
   sites are told after the aggregator has left, so that its own farewell reaches them first.
5. What the database could not be told or asked is tried again; until then readiness says so.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from director import lifecycle, scheduling
from director.running import Aggregators, Patience
from director.store import events, experiments, sites
from director.supervision import CANCELLED
from federation.errors import ConflictError, FederationError, NotFoundError, StorageError
from federation.names import Epoch, ExperimentId, ExperimentState
from federation.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sqlalchemy.orm import Session

    from director.attendance import Attendance
    from director.launcher import Launcher
    from director.store.database import Database
    from director.store.records import ExperimentRecord, ParticipationRecord
    from director.supervision import Supervision
    from federation.runtime.clock import Clock
    from federation.runtime.tasks import Supervisor
    from federation.telemetry.metrics import Metrics

_RETRY_S = 5.0

_log = get_logger(__name__)


class Overseer:
    """The acting part of the director; implements the listeners of `attendance` and `supervision`.

    Args:
        actor: SPIFFE id of the director, for transitions it decides.
        database: the store.
        launcher: starts aggregators.
        work: folder with one folder per experiment.
        clock: for times and waits.
        metrics: experiments by state, queue depth, sites by state, aggregators.
        slots: experiments that may run at once.
        patience: see `director.running`.
        tasks: where aggregators' tasks run.

    Attributes:
        trouble: why the agenda cannot be worked off at present; None if it can. For readiness.
    """

    def __init__(
        self,
        *,
        actor: str,
        database: Database,
        launcher: Launcher,
        work: Path,
        clock: Clock,
        metrics: Metrics,
        slots: int,
        patience: Patience,
        tasks: Supervisor,
    ) -> None:
        self.trouble: str | None = None
        self.aggregators = Aggregators(
            actor=actor,
            database=database,
            launcher=launcher,
            work=work,
            clock=clock,
            metrics=metrics,
            patience=patience,
            tasks=tasks,
            give_up=self._give_up,
            left=self._left,
        )
        self._actor = actor
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._slots = slots
        self._agenda: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._reconsidering = False
        self._draining = False
        self._attendance: Attendance
        self._supervision: Supervision

    def attach(self, attendance: Attendance, supervision: Supervision) -> None:
        """Say whom to talk through; before anything else, and once. They in turn know us as their listener."""
        self._attendance, self._supervision = attendance, supervision

    def sites_changed(self) -> None:
        """An envoy came, left, or offers something else."""
        self.reconsider()

    def state_changed(self) -> None:
        """An experiment paused or runs again."""
        self.reconsider()

    def reconsider(self) -> None:
        """Look at the queue again, soon; asking many times before it happens is asking once."""
        if not self._reconsidering:
            self._reconsidering = True
            self._agenda.put_nowait(self._schedule)

    def answered(self, experiment: ExperimentId) -> None:
        """A site's part in the experiment changed."""
        self._agenda.put_nowait(lambda: self._heed_answers(experiment))

    def aggregator_ready(self, experiment: ExperimentId) -> None:
        """An aggregator said where it is reached: sites may be asked."""
        self._agenda.put_nowait(lambda: self._ask_sites(experiment))

    def ended(self, experiment: ExperimentId) -> None:
        """The experiment is over, as its aggregator says."""
        self.aggregators.end(experiment)
        self.reconsider()

    async def work(self) -> None:
        """Work the agenda off, for ever."""
        while True:
            item = await self._agenda.get()
            try:
                await item()
                self.trouble = None
            except StorageError as error:
                self.trouble = str(error)
                _log.error("the director cannot act; trying again", reason=str(error), after_s=_RETRY_S)
                self._clock.timer(_RETRY_S, lambda again=item: self._agenda.put_nowait(again))  # type: ignore[misc]
            except FederationError as error:
                _log.warning("what was due cannot be done", reason=str(error))

    async def resume(self) -> None:
        """Go on with what an earlier director left."""
        active = await self._database.transact(experiments.find, states=lifecycle.ACTIVE)
        self.aggregators.resume([found.id for found in active])
        self.reconsider()

    async def drain(self, stop_now: asyncio.Event) -> None:
        """Start nothing more and stop every aggregator, at once when `stop_now` is set.

        Experiments stay as they are in the database and go on at the next start.
        """
        self._draining = True
        await self.aggregators.drain(stop_now)

    async def finish(self, experiment: ExperimentId, to: ExperimentState, reason: str, actor: str) -> None:
        """End an experiment from here: cancel it, or fail it. Repeating it changes nothing.

        Raises:
            ConflictError: it has ended otherwise.
            NotFoundError: there is none.
        """
        change = lifecycle.Change(to=to, reason=reason, actor=actor, at=self._clock.now())
        if await self._database.transact(_finish, experiment, change):
            _log.info("experiment ended", experiment=experiment, outcome=to.value, reason=reason, actor=actor)
        self._supervision.stop(experiment, CANCELLED, reason)
        await self._attendance.withdraw(experiment, f"{to.value}: {reason}")
        self.aggregators.end(experiment)
        self.reconsider()

    async def release(self, experiment: ExperimentId, site: str, reason: str, actor: str) -> int:
        """Let a site out of quarantine: stored, then sent with the roster. Repeating it changes nothing.

        What is refused is in the audit trail too.

        Returns:
            The round that had quarantined the site; 0 if it was not in quarantine.

        Raises:
            ConflictError: the experiment has ended.
            NotFoundError: there is none, or the site takes no part in it.
        """
        now = self._clock.now()
        try:
            since: int = await self._database.transact(_release, experiment, site, reason, actor, now)
        except (ConflictError, NotFoundError) as error:
            await self._database.transact(_note_refused_release, experiment, site, actor, str(error), now)
            raise
        if since:
            _log.warning(
                "site released", experiment=experiment, site=site, since_round=since, reason=reason, actor=actor
            )
        await self._supervision.push_roster(experiment)
        return since

    async def _schedule(self) -> None:
        self._reconsidering = False
        online = self._attendance.online
        counts, queue, offers = await self._database.relaxed(_look, online)
        self._show(counts, online=len(online), known=len(offers))
        running = sum(counts[state] for state in lifecycle.ACTIVE)
        needs = [found.need for found in queue]
        if self._draining:
            return
        decision = scheduling.decide(needs, offers, running=running, slots=self._slots)
        for experiment, reason in decision.waiting.items():
            await self._database.transact(experiments.explain_waiting, experiment, reason, self._clock.now())
        for experiment in decision.start:
            await self._start(experiment)
        if decision.start:
            self.reconsider()

    async def _start(self, experiment: ExperimentId) -> None:
        start = lifecycle.Change(
            to=ExperimentState.RUNNING, reason="enough sites match", actor=self._actor, at=self._clock.now()
        )
        try:
            epoch = await self._database.transact(experiments.grant_epoch, experiment, Epoch(0), start)
        except ConflictError as error:
            _log.info("experiment not started", experiment=experiment, reason=str(error))  # cancelled a moment ago
            return
        self.aggregators.begin(experiment, epoch)

    async def _ask_sites(self, experiment: ExperimentId) -> None:
        await self._attendance.assign(await self._database.relaxed(experiments.get, experiment))

    async def _heed_answers(self, experiment: ExperimentId) -> None:
        await self._supervision.push_roster(experiment)
        found = await self._database.relaxed(experiments.get, experiment)
        if found.state in lifecycle.ACTIVE and not found.rounds_done:
            parts = await self._database.relaxed(sites.participations, experiment)
            reason = _too_few(found, parts)
            if reason is not None:
                await self.finish(experiment, ExperimentState.FAILED, reason, self._actor)

    async def _give_up(self, experiment: ExperimentId, reason: str) -> None:
        await self.finish(experiment, ExperimentState.FAILED, reason, self._actor)

    async def _left(self, experiment: ExperimentId) -> None:
        found = await self._database.relaxed(experiments.get, experiment)
        await self._attendance.withdraw(experiment, f"{found.state.value}: {found.reason}")
        self._database.announce(experiment)  # whoever follows its log may read the last lines
        self.reconsider()

    def _show(self, counts: dict[ExperimentState, int], *, online: int, known: int) -> None:
        for state, number in counts.items():
            self._metrics.experiments.labels(state=state.value).set(number)
        self._metrics.queue_depth.set(counts[ExperimentState.QUEUED])
        self._metrics.sites.labels(state="online").set(online)
        self._metrics.sites.labels(state="offline").set(max(0, known - online))


def _look(
    session: Session, online: frozenset[str]
) -> tuple[dict[ExperimentState, int], list[ExperimentRecord], list[scheduling.Site]]:
    queue = experiments.find(session, states=[ExperimentState.QUEUED])
    queue.sort(key=lambda found: (found.submitted_at, found.id))
    return experiments.count_by_state(session), queue, sites.offers(session, online)


def _too_few(found: ExperimentRecord, parts: list[ParticipationRecord]) -> str | None:
    """Return why the experiment cannot get enough sites any more; None if it can, or some have not decided.

    It was started because at least `need.sites` match. Where fewer were asked, some were away when it was their turn,
    as all are for a moment after the director itself was away: they are asked once they are back.
    """
    accepted = sum(part.answer in (sites.ACCEPTED, sites.FINISHED) for part in parts)
    if (
        len(parts) < found.need.sites
        or accepted >= found.minimum_sites
        or any(part.answer in sites.UNDECIDED for part in parts)
    ):
        return None
    refusals = [part for part in parts if part.answer in (sites.REFUSED, sites.LOST)]
    reasons = "; ".join(f"{part.site} {part.answer}: {part.reason or 'no reason given'}" for part in refusals)
    return f"{accepted} of the {len(parts)} sites asked take part, {found.minimum_sites} are needed: {reasons}"


def _release(session: Session, experiment: str, site: str, reason: str, actor: str, at: float) -> int:
    found = experiments.get(session, experiment)
    if found.state.is_terminal:
        raise ConflictError(f"experiment {experiment} is {found.state.value}: nobody is asked any more")
    return sites.release(session, experiment, site, actor=actor, reason=reason, at=at)


def _note_refused_release(session: Session, experiment: str, site: str, actor: str, why: str, at: float) -> None:
    subject = f"{experiment}/{site[:80]}"
    events.audit(session, at=at, actor=actor, action="ReleaseSite", admitted=False, subject=subject, detail=why)


def _finish(session: Session, experiment: ExperimentId, change: lifecycle.Change) -> bool:
    changed = experiments.change(session, experiment, change)
    if changed and change.to is ExperimentState.CANCELLED:
        events.audit(
            session,
            at=change.at,
            actor=change.actor,
            action="CancelExperiment",
            admitted=True,
            subject=experiment,
            detail=change.reason,
        )
    return changed
