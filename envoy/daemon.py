"""The envoy, assembled: everything is made here, top to bottom, and stopped here in the opposite order.

Stopping: the first signal drains (no new work; collaborators end the task in progress and their trainers, and go on
when the envoy is started again), the second stops at once (collaborators and trainers are killed). An envoy that is
killed leaves its collaborators running; the next one adopts them, or they end themselves after ``limits.orphan_s``.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envoy import fetching, messages
from envoy.attendance import Attendance, EpochFile
from envoy.catalogue import Catalogue
from envoy.control import ControlSocket
from envoy.experiments import Experiments
from envoy.identity import SiteIdentity, read_identity
from envoy.participation import Participation, ParticipationStore
from envoy.spawning import Collaborators
from federation.bundle import Manifest, NonceLedger
from federation.collaborator.config import CollaboratorConfig
from federation.errors import ConfigurationError, StorageError
from federation.pki import known as known_keys
from federation.pki.renewal import Renewal, describe_expiry
from federation.runtime.clock import SystemClock
from federation.runtime.notify import notify_stopping
from federation.runtime.tasks import Supervisor
from federation.telemetry.http import DiscoveryTarget, MonitoringServer
from federation.telemetry.metrics import Metrics
from federation.v1 import director_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from envoy.config import EnvoySettings
    from federation.runtime.clock import Clock
    from federation.runtime.shutdown import Shutdown
    from federation.transport.methods import Stub

_log = logging.getLogger(__name__)
SOCKET = "envoy.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folders:
    """Where things lie below the state folder."""

    state: Path

    @property
    def experiments(self) -> Path:
        return self.state / "experiments"

    @property
    def describing(self) -> Path:
        return self.state / "describing"

    @property
    def socket(self) -> Path:
        return self.state / SOCKET


async def run(settings: EnvoySettings, shutdown: Shutdown) -> None:
    """Run an envoy until it is told to stop.

    Raises:
        ConfigurationError: certificates, state folder, ports or trainers are not usable.
        StorageError: the state folder is not readable.
    """
    clock = SystemClock()
    site = read_identity(settings, now=clock.now())
    folders = _Folders(state=settings.state.absolute())
    metrics = Metrics()
    metrics.watch_certificate(site.identity.spiffe, site.expires_at)
    with _locked(folders.state):
        catalogue = make_catalogue(settings, clock)
        collaborators = Collaborators(metrics)
        async with Supervisor("envoy") as supervisor:
            experiments = _assemble(settings, site, folders, catalogue, collaborators, supervisor, metrics, clock)
            attendance = Attendance(
                open_channel=lambda: site.open_director(settings.director),
                make_stub=site.director_stub,
                member=experiments,
                epochs=EpochFile(folders.state / "director.json"),
                clock=clock,
            )
            experiments.tell, experiments.director = attendance.send, attendance.director
            renewal = _renewal(settings, site, attendance, collaborators, supervisor, clock)
            if renewal is not None:
                supervisor.eternal("certificate", renewal.run())
            monitoring = _monitoring(
                settings,
                metrics,
                attendance,
                catalogue,
                collaborators,
                certificate=lambda: _expiry(site, renewal, clock.now()),
            )
            control = ControlSocket(folders.socket, experiments, collaborators)
            async with _serving(monitoring, control, folders.state):
                # Collaborators of a predecessor are adopted before their lines are answered.
                experiments.resume()
                await control.start()
                supervisor.job("begin", _begin(catalogue, attendance, supervisor), critical=True)
                await shutdown.draining.wait()
                notify_stopping()
                await _drain(collaborators, shutdown)


def make_catalogue(settings: EnvoySettings, clock: Clock) -> Catalogue:
    """Return the catalogue of the shards in the settings, not yet described."""
    folders = _Folders(state=settings.state.absolute())
    return Catalogue(
        settings.shard_settings,
        settings.trainer_options,
        folders.describing,
        hidden=hidden_paths(settings),
        timeout_s=settings.limits.describe_s,
        clock=clock,
    )


def hidden_paths(settings: EnvoySettings) -> tuple[Path, ...]:
    """What no trainer may ever see: the site's key and the envoy's state."""
    return (settings.key, settings.state)


async def _begin(catalogue: Catalogue, attendance: Attendance, supervisor: Supervisor) -> None:
    """Describe the shards, then attend: a director is never told of shards that do not load."""
    await catalogue.describe()
    supervisor.eternal("attendance", attendance.run())


def _assemble(
    settings: EnvoySettings,
    site: SiteIdentity,
    folders: _Folders,
    catalogue: Catalogue,
    collaborators: Collaborators,
    supervisor: Supervisor,
    metrics: Metrics,
    clock: SystemClock,
) -> Experiments:
    store = ParticipationStore(folders.experiments)

    def known() -> Mapping[str, str]:
        return known_keys.load_known(settings.policy.known).users

    def pin(user: str, fingerprint: str) -> None:
        known_keys.pin(settings.policy.known, "users", user, fingerprint)

    return Experiments(
        settings=settings,
        store=store,
        catalogue=catalogue,
        collaborators=collaborators,
        nonces=NonceLedger(folders.state / "nonces.txt", now=clock.now()),
        known=known,
        pin=pin,
        configure=lambda record: configure(settings, site, folders.socket, store, catalogue, record),
        tell=lambda _: None,
        director=_nobody,
        supervisor=supervisor,
        clock=clock,
        metrics=metrics,
    )


def configure(
    settings: EnvoySettings,
    site: SiteIdentity,
    socket: Path,
    store: ParticipationStore,
    catalogue: Catalogue,
    record: Participation,
) -> CollaboratorConfig:
    """Return what the collaborator of an accepted experiment is told."""
    assignment = record.message
    manifest = Manifest.parse(assignment.manifest)
    folder = store.folder_of(record.experiment)
    return CollaboratorConfig(
        federation=site.federation,
        site=site.site,
        experiment=record.experiment,
        authority=site.tls.authority.absolute() if site.tls else None,
        certificate=site.tls.certificate.absolute() if site.tls else None,
        key=site.tls.key.absolute() if site.tls else None,
        aggregator_address=assignment.aggregator_address,
        aggregator_server_name=assignment.aggregator_server_name,
        spec_file=fetching.spec_file(folder),
        initial_model=manifest.model_payload_digest.hex(),
        initial_base=manifest.base_payload_digest.hex(),
        bundle_folder=fetching.bundle_folder(folder),
        folder=folder / "collaborator",
        workspace=folder / "workspace",
        exchange=folder / "exchange",
        trainer_log=folder / messages.TRAINER_LOG,
        shards=catalogue.chosen(list(assignment.shards)),
        trainer=settings.trainer_options,
        hidden=tuple(path.absolute() for path in hidden_paths(settings)),
        envoy_socket=socket,
        orphan_s=settings.limits.orphan_s,
        drain_s=settings.limits.drain_s,
        release_tracebacks=settings.policy.release_tracebacks,
        log_level=settings.log_level,
    )


def _renewal(
    settings: EnvoySettings,
    site: SiteIdentity,
    attendance: Attendance,
    collaborators: Collaborators,
    supervisor: Supervisor,
    clock: Clock,
) -> Renewal | None:
    """Return what keeps the certificate renewed, and has everybody here use it; None if nothing is to."""
    if site.tls is None or not settings.renew:
        return None

    async def ask(signing_request: bytes) -> bytes:
        stub = await attendance.director()
        reply = await stub.unary("Renew", director_pb2.RenewRequest(signing_request=signing_request))
        certificate: bytes = reply.certificate
        return certificate

    def renewed() -> None:
        attendance.renew()
        supervisor.job("certificate-news", collaborators.certificate_renewed())

    return Renewal(site.tls, ask, clock=clock, on_renewed=renewed)


def _expiry(site: SiteIdentity, renewal: Renewal | None, now: float) -> str | None:
    """What is wrong with the certificate, if anything."""
    if renewal is not None:
        return renewal.trouble()
    expires_at = site.expires_at()
    return None if site.tls is None or expires_at > now else f"certificate {describe_expiry(expires_at, now)}"


def _monitoring(
    settings: EnvoySettings,
    metrics: Metrics,
    attendance: Attendance,
    catalogue: Catalogue,
    collaborators: Collaborators,
    *,
    certificate: Callable[[], str | None],
) -> MonitoringServer:
    def session() -> str | None:
        if attendance.superseded:
            return attendance.superseded
        return None if attendance.is_connected else f"no session with the director at {settings.director}"

    def shards() -> str | None:
        if catalogue.problems:
            return "not offered: " + ", ".join(f"{name} ({why})" for name, why in sorted(catalogue.problems.items()))
        return None if catalogue.offered else "shards are being loaded"

    def discovery() -> Sequence[DiscoveryTarget]:
        """Where Prometheus finds the collaborators that run here."""
        return [
            DiscoveryTarget(
                targets=(each.metrics_address,),
                labels={"role": "collaborator", "site": each.config.site, "experiment": each.experiment},
            )
            for each in collaborators.all()
            if each.metrics_address
        ]

    readiness = {"director": session, "shards": shards, "certificate": certificate}
    return MonitoringServer(settings.metrics.host, settings.metrics.port, metrics, readiness, discovery)


@asynccontextmanager
async def _serving(monitoring: MonitoringServer, control: ControlSocket, state: Path) -> AsyncIterator[None]:
    port = await monitoring.start()
    (state / "monitoring.port").write_text(f"{port}\n")
    _log.info("metrics, health and discovery on port %d", port)
    try:
        yield
    finally:
        await control.stop()
        await monitoring.stop()


async def _drain(collaborators: Collaborators, shutdown: Shutdown) -> None:
    stopping = asyncio.create_task(collaborators.stop_all(shutdown.reason), name="stop-collaborators")
    hurry = asyncio.create_task(shutdown.stop_now.wait(), name="stop-now")
    try:
        await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            collaborators.kill_all()
            await stopping
    finally:
        hurry.cancel()
        await asyncio.gather(hurry, return_exceptions=True)


async def _nobody(other_than: Stub | None = None) -> Stub:
    raise RuntimeError("the session with the director is assembled after the experiments")


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Own the state folder: two envoys on one folder would both run its experiments."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"state folder {state} cannot be used: {error.strerror or error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigurationError(f"another envoy uses state folder {state}; stop it or choose another") from error
    try:
        yield
    finally:
        os.close(descriptor)
