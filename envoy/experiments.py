"""What happens to an experiment at this site, from the director's question to the end: the shell around the rules.

In order: open the manifest (`federation.bundle`), ask policy (`admission`), spend the signature's nonce, fetch and
open the bundle (`fetching`), answer, run a collaborator (`spawning`), report its end. Each step is recorded before the
next begins (`participation`), so a restart goes on where it stopped and a repeated assignment is answered alike; that
it is over counts even where a full disk does not take it. One that comes while the experiment is being withdrawn is
answered once it has left.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from envoy import admission, considering, endings, fetching, messages, released
from envoy.participation import Participation, ParticipationStore, Stage, is_same_request
from envoy.spawning import Collaborator, Collaborators
from federation.errors import ConflictError, FederationError, NotFoundError, StorageError
from federation.names import ExperimentId, check_name
from federation.runtime.backoff import Backoff
from federation.runtime.clock import pause
from federation.runtime.records import is_for_want_of_room
from federation.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from envoy.catalogue import Catalogue
    from envoy.config import EnvoySettings
    from federation.bundle import NonceLedger, VerifiedManifest
    from federation.collaborator.config import CollaboratorConfig
    from federation.runtime.clock import Clock
    from federation.runtime.tasks import Supervisor
    from federation.telemetry.metrics import Metrics
    from federation.v1 import director_pb2

_log = get_logger(__name__)
_LISTED = 100


@dataclass(slots=True, kw_only=True)
class Experiments:
    """Every experiment of this site; `attendance.Member` and `control.Owner` in one.

    Attributes:
        settings: the owner's.
        store: what is remembered.
        catalogue: shards on offer.
        collaborators: what runs.
        nonces: signatures spent.
        known: reads the pinned fingerprints of users, afresh each time.
        pin: pins a user's fingerprint.
        configure: makes a collaborator's config from a record.
        tell: sends to the director if it is there.
        director: gives the director's calls once it is there.
        supervisor: owner of the jobs started here.
        clock: time.
        metrics: counts.
    """

    settings: EnvoySettings
    store: ParticipationStore
    catalogue: Catalogue
    collaborators: Collaborators
    nonces: NonceLedger
    known: Callable[[], Mapping[str, str]]
    pin: Callable[[str, str], None]
    configure: Callable[[Participation], CollaboratorConfig]
    tell: Callable[[director_pb2.AttendRequest], None]
    director: fetching.ConnectedDirector
    supervisor: Supervisor
    clock: Clock
    metrics: Metrics
    _jobs: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _asked: dict[str, director_pb2.Assignment] = field(default_factory=dict)  # the newest of those being considered
    _leaving: dict[str, bool] = field(default_factory=dict)  # those being withdrawn; whether somebody asked meanwhile
    _details: dict[str, dict[str, Any]] = field(default_factory=dict)

    def resume(self) -> None:
        """Go on with what was accepted before this process began: adopt or start collaborators, or fetch again."""
        if not self.settings.keep_workspaces:
            for record in (*self.store.at(Stage.ENDED), *self.store.at(Stage.REFUSED)):
                self.store.clean(record.experiment)  # what a predecessor had no time to remove
        for record in self.store.at(Stage.ACCEPTED):
            if fetching.is_ready(self.store.folder_of(record.experiment)):
                self._start(record)
            else:
                self._begin(record.experiment, self._consider(record.message))
        self._count()

    # What the session with the director asks (attendance.Member).

    def offers(self) -> director_pb2.ShardOffers:
        """Shards on offer."""
        return self.catalogue.offers

    def running(self) -> Sequence[str]:
        """Experiments whose collaborators run here."""
        return [each.experiment for each in self.collaborators.all()]

    def standing(self) -> Sequence[director_pb2.AttendRequest]:
        """Everything a director that knows nothing must be told."""
        told = []
        for record in self.store.all():
            if record.stage is Stage.PENDING or (record.stage.is_over and not record.reported):
                told.append(messages.word_on(record))
            elif record.stage is Stage.ACCEPTED and self.collaborators.get(record.experiment) is not None:
                told.append(messages.word_on(record))
        return told

    def assigned(self, assignment: director_pb2.Assignment) -> None:
        """The director asks the site to join; repeating it is harmless."""
        try:
            experiment = ExperimentId(check_name(assignment.experiment, "experiment id"))
        except FederationError as error:
            _log.error("the director sent an assignment that cannot be answered: %s", error)
            return
        record = self.store.get(experiment)
        if record is not None and not is_same_request(record.message, assignment):
            _log.error(
                "the director changed what experiment %s is; keeping to what was signed first",
                experiment,
                experiment=experiment,
            )
            self.tell(messages.refused(experiment, "this experiment was assigned before with other content"))
        elif experiment in self._leaving:
            self._leaving[experiment] = True
        elif record is None or (record.stage is Stage.REFUSED and not record.refused_by_owner):
            self._asked[experiment] = assignment
            self._begin(experiment, self._consider(assignment))
        elif record.stage.is_over:
            self.tell(messages.word_on(record))
        else:
            self._again(record, assignment)

    def withdrawn(self, withdrawal: director_pb2.Withdrawal) -> None:
        """The director ends a participation."""
        record = self.store.get(withdrawal.experiment)
        if record is not None and not record.stage.is_over and record.experiment not in self._leaving:
            self._leaving[record.experiment] = False
            self.supervisor.job(f"withdraw-{record.experiment}", self._withdraw(record.experiment, withdrawal.reason))

    def delivered(self, request: director_pb2.AttendRequest) -> None:
        """A message was handed to the connection: an end that was told need not be told again."""
        experiment = messages.final_word_on(request)
        record = self.store.get(experiment) if experiment else None
        if record is not None and record.stage.is_over and not record.reported:
            self._conclude(replace(record, reported=True))

    # What the owner asks (control.Owner).

    def listing(self) -> list[dict[str, Any]]:
        """The newest experiments this site knows, oldest first."""
        return [messages.listed(record) for record in self.store.all()[-_LISTED:]]

    async def approve(self, experiment: str, *, pin: bool) -> str:
        """Approve what waits; policy is asked again, and may refuse still.

        Args:
            experiment: id.
            pin: also pin the signer's key, so that his next bundle need not wait.

        Raises:
            NotFoundError: no such experiment.
            ConflictError: it does not wait.
        """
        record = self._waiting(experiment)
        if pin:
            self.pin(record.submitter, record.fingerprint)
        record = self.store.update(experiment, approved=True)
        self._begin(record.experiment, self._consider(record.message))
        return f"approved {experiment}; it starts now" + (f", and {record.submitter}'s key is pinned" if pin else "")

    async def refuse(self, experiment: str, reason: str) -> str:
        """Refuse what waits, for good; errors as `approve`."""
        record = self._waiting(experiment)
        text = reason or "the site's owner refused it"
        self._refuse(self.store.update(record.experiment, refused_by_owner=True), text)
        return f"refused {experiment}"

    def heard(self, experiment: str, status: dict[str, Any]) -> None:
        """A collaborator said how it goes."""
        collaborator, record = self.collaborators.get(experiment), self.store.get(experiment)
        if collaborator is None or record is None:
            return
        before = self._details.get(experiment)
        self._details[experiment] = status
        if before is not None and status.get("round") != before.get("round"):
            collaborator.progressed()
        if self.settings.policy.release_logs:
            self.supervisor.job(f"release-{experiment}", self._release(record.experiment))

    # Steps.

    def _begin(self, experiment: str, work: Any) -> None:
        running = self._jobs.get(experiment)
        if running is not None and not running.done():
            work.close()  # the same question is being worked on
            return
        self._jobs[experiment] = self.supervisor.job(f"assignment-{experiment}", work)

    async def _consider(self, assignment: director_pb2.Assignment) -> None:
        """Come to an answer, and give it. A full disk is none: it is waited for, and the director is told so."""
        backoff = Backoff(first_s=1.0, most_s=60.0)
        while not await self._is_settled(self._asked.get(assignment.experiment, assignment)):
            await pause(self.clock, backoff.next_s())
        self._asked.pop(assignment.experiment, None)

    async def _is_settled(self, assignment: director_pb2.Assignment) -> bool:
        experiment = ExperimentId(assignment.experiment)
        before = self.store.get(experiment)
        record = Participation(
            experiment=experiment,
            assignment=assignment.SerializeToString(),
            stage=Stage.PENDING,
            approved=before.approved if before else False,
            asked_at=before.asked_at if before else self.clock.now(),
        )
        try:
            await self.catalogue.described.wait()  # before, there is nothing to compare with
            verified = await asyncio.to_thread(considering.open_assignment, assignment, self.settings, self.clock.now())
            record = messages.signed_by(record, verified)
            decision = admission.decide(self._request(record, assignment, verified), self.settings.admission_policy)
            if decision.verdict is admission.Verdict.REFUSED:
                self._refuse(record, decision.reason)
                return True
            if decision.verdict is admission.Verdict.PENDING:
                self._hold(record, decision.reason)
                return True
            manifest = verified.manifest
            self.nonces.accept(manifest.nonce, experiment=experiment, not_after=manifest.not_after)
            self.store.save(messages.at_stage(record, Stage.ACCEPTED))
            folder = self.store.folder_of(experiment)
            await fetching.fetch(self.director, experiment, manifest, folder, clock=self.clock, metrics=self.metrics)
            await asyncio.to_thread(fetching.unpack, manifest, folder, self.settings.limits.max_bundle_bytes)
        except FederationError as error:
            if is_for_want_of_room(error, self.store.folder):
                _log.warning("experiment %s has to wait for room: %s", experiment, error, experiment=experiment)
                self.tell(messages.pending(experiment, "the site's disk is full; it answers once there is room"))
                return False
            _log.warning("experiment %s cannot run here: %s", experiment, error, experiment=experiment)
            self._refuse(record, messages.sayable(error))
            return True
        accepted = self.store.get(experiment)
        if accepted is not None and accepted.stage is Stage.ACCEPTED:
            _log.info("experiment %s is accepted", experiment, experiment=experiment, submitter=manifest.submitter)
            self._start(accepted)
            self.tell(messages.accepted(experiment))
        return True

    def _request(
        self, record: Participation, assignment: director_pb2.Assignment, verified: VerifiedManifest
    ) -> admission.Request:
        return considering.request_of(
            assignment,
            verified,
            pinned=self.known().get(verified.manifest.submitter),
            approved=record.approved,
            running=sum(other.experiment != record.experiment for other in self.store.at(Stage.ACCEPTED)),
            offered=self.catalogue.offered,
        )

    def _again(self, record: Participation, assignment: director_pb2.Assignment) -> None:
        """A question that was asked before; where the aggregator listens may be news, and that it does always is."""
        old = record.message
        moved = (old.aggregator_address, old.aggregator_server_name) != (
            assignment.aggregator_address,
            assignment.aggregator_server_name,
        )
        if moved:
            record = self.store.update(record.experiment, assignment=assignment.SerializeToString())
        collaborator = self.collaborators.get(record.experiment)
        if collaborator is not None:
            self.supervisor.job(
                f"move-{record.experiment}",
                collaborator.move(assignment.aggregator_address, assignment.aggregator_server_name),
            )
        if record.stage is Stage.PENDING or collaborator is not None:
            self.tell(messages.word_on(record))

    def _hold(self, record: Participation, reason: str) -> None:
        record = self.store.save(messages.at_stage(record, Stage.PENDING, reason))
        name = record.experiment
        _log.info("experiment %s waits: %s; `envoy approve %s`", name, reason, name, experiment=name)
        self._count()
        self.tell(messages.pending(record.experiment, reason))

    def _refuse(self, record: Participation, reason: str) -> None:
        decision = admission.refused(reason)
        record = self._conclude(messages.at_stage(record, Stage.REFUSED, decision.reason))
        _log.info("experiment %s is refused: %s", record.experiment, decision.reason, experiment=record.experiment)
        self.store.clean(record.experiment)
        self._count()
        self.tell(messages.refused(record.experiment, decision.reason))

    def _start(self, record: Participation) -> None:
        collaborator = Collaborator(
            experiment=record.experiment,
            folder=self.store.folder_of(record.experiment),
            config=self.configure(record),
            max_restarts=self.settings.limits.max_restarts,
            clock=self.clock,
            metrics=self.metrics,
        )
        self.collaborators.add(collaborator)
        self._count()
        self.supervisor.job(f"run-{record.experiment}", self.collaborators.run(collaborator, self._ended))

    async def _ended(self, experiment: ExperimentId, over: endings.Over) -> None:
        status = self._details.pop(experiment, {})
        detail = str(status.get("detail", "")) if self.settings.policy.release_tracebacks else ""
        record = self.store.get(experiment)
        if record is None:
            raise RuntimeError(f"{experiment} ran here, and nothing is remembered of it")
        record = self._conclude(
            replace(
                record,
                stage=Stage.ENDED,
                outcome=over.outcome,
                reason=over.reason,
                error_class=over.error_class,
                detail=detail,
            )
        )
        how = over.reason or over.error_class or "done"
        _log.info("experiment %s %s here: %s", experiment, over.outcome, how, experiment=experiment)
        await self._leave(record)
        self.tell(messages.word_on(record))

    async def _withdraw(self, experiment: ExperimentId, reason: str) -> None:
        try:
            await self._stop(experiment, reason)
        finally:
            is_asked = self._leaving.pop(experiment)
        record = self.store.get(experiment)
        if is_asked and record is not None:
            self.tell(messages.word_on(record))

    async def _stop(self, experiment: ExperimentId, reason: str) -> None:
        self._asked.pop(experiment, None)
        job = self._jobs.pop(experiment, None)
        if job is not None and not job.done():
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
        collaborator = self.collaborators.get(experiment)
        if collaborator is not None:
            await collaborator.stop(reason or "the director withdrew it", drain=False)
        record = self.store.get(experiment)
        # What ended by its own last word meanwhile keeps its outcome.
        if record is not None and not record.stage.is_over:
            _log.info("experiment %s was withdrawn: %s", experiment, reason, experiment=experiment)
            await self._leave(self._conclude(replace(record, stage=Stage.ENDED, reason=reason, reported=True)))

    def _conclude(self, record: Participation) -> Participation:
        """Remember what is over. Whoever waits for it is told, whatever the disk says."""
        try:
            return self.store.conclude(record, keeps_files=self.settings.keep_workspaces)
        except StorageError as error:
            name = record.experiment
            _log.error("that %s is over could not be written down: %s", name, error, experiment=name)
            return record

    async def _leave(self, record: Participation) -> None:
        """Release what may leave, and remove the rest."""
        self._details.pop(record.experiment, None)
        if self.settings.policy.release_logs:
            try:
                await self._release(record.experiment)
            except StorageError as error:
                _log.error("the last lines of %s are not released: %s", record.experiment, error)
        if not self.settings.keep_workspaces:
            await asyncio.to_thread(self.store.clean, record.experiment)
        self._count()

    async def _release(self, experiment: ExperimentId) -> None:
        record = self.store.get(experiment)
        if record is None:
            return
        log = self.store.folder_of(experiment) / messages.TRAINER_LOG
        lines, offset = await asyncio.to_thread(released.read_new, log, record.log_offset)
        if lines:
            self.store.update(experiment, log_offset=offset)
            for request in messages.logs(experiment, lines):
                self.tell(request)

    def _waiting(self, experiment: str) -> Participation:
        record = self.store.get(experiment)
        if record is None:
            raise NotFoundError(f"no experiment {experiment[:80]!r} is known here; `envoy pending` lists what waits")
        if record.stage is not Stage.PENDING:
            raise ConflictError(f"experiment {experiment} is {record.stage.value}, it does not wait for approval")
        return record

    def _count(self) -> None:
        for stage in Stage:
            self.metrics.experiments.labels(stage.value).set(len(self.store.at(stage)))
