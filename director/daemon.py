"""The director, assembled: one function reads top to bottom, what it builds is passed on by hand.

Rules, in order:

1. Nothing is served before the database is migrated, its lease is ours, and half submissions are taken back.
2. A director that loses its lease (`director.leasing`) stops at once and leaves its aggregators to whoever has it now.
3. SIGTERM drains: no more submissions or starts, aggregators stop, their experiments stay RUNNING in the database,
   calls get a grace period. A second one stops at once.
4. A fault of ours (a task that must not end ended) stops the director but not its aggregators: the next start adopts
   them.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from director.attendance import Attendance
from director.bulletin import Bulletin
from director.desk import Desk
from director.enrolment import Enrolment, aggregator_configuration
from director.exchange import Exchange
from director.intake import Allowance, Intake
from director.launcher import SubprocessLauncher
from director.leasing import LeaseKeeper, give_up_lease, take_lease
from director.logs import LogFolder
from director.overseer import Overseer
from director.running import Patience
from director.service import DESCRIPTOR, DirectorService, rules
from director.store.database import Database, check_url
from director.supervision import Supervision
from federation.errors import ConfigurationError
from federation.names import FederationName, Identity, Role
from federation.pki.authority import CertificateAuthority
from federation.pki.revocation import RevocationList
from federation.runtime.children import Limits as ChildLimits
from federation.runtime.clock import SystemClock
from federation.runtime.notify import notify_ready, notify_stopping
from federation.runtime.tasks import Supervisor
from federation.storage.artifacts import FsspecStore
from federation.telemetry.http import MonitoringServer
from federation.telemetry.logs import get_logger
from federation.telemetry.metrics import Metrics
from federation.transport.authority import Authority, Limits
from federation.transport.credentials import TlsFiles
from federation.transport.server import RpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from director.config import DirectorSettings
    from director.launcher import Launcher
    from federation.runtime.clock import Clock
    from federation.runtime.shutdown import Shutdown

_DIRECTOR = "director"
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # compared with, not bound to

_log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Director:
    """A running director.

    Attributes:
        port: where it listens.
        metrics_port: where Prometheus finds it.
        lease_epoch: epoch of its lease.
        overseer: its acting part; for draining.
        server: its gRPC server.
    """

    port: int
    metrics_port: int
    lease_epoch: int
    overseer: Overseer
    server: RpcServer


async def run(settings: DirectorSettings, shutdown: Shutdown) -> None:
    """Run a director until it is asked to stop.

    Raises:
        ConfigurationError: settings, certificates, database or an address cannot be used, or another director holds the
            database.
        FederationError: a fault while running.
    """
    async with serving(settings) as director:
        _log.info("director runs", federation=settings.federation, port=director.port, metrics=director.metrics_port)
        notify_ready(address=_own_address(settings, director.port))
        await shutdown.draining.wait()
        notify_stopping()
        _log.info("draining", reason=shutdown.reason)
        await director.overseer.drain(shutdown.stop_now)
        hurry = asyncio.create_task(shutdown.stop_now.wait(), name="hurry")
        stop = asyncio.create_task(director.server.stop(settings.times.drain_s), name="stop server")
        try:
            await asyncio.wait({hurry, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            stop.cancel()


@asynccontextmanager
async def serving(
    settings: DirectorSettings, *, clock: Clock | None = None, launcher: Launcher | None = None
) -> AsyncIterator[Director]:
    """Assemble a director and serve until the context is left.

    Args:
        settings: what to be.
        clock: for tests; the system's by default.
        launcher: for tests and other platforms; local subprocesses by default.

    Raises:
        ConfigurationError: as `run`.
    """
    clock = clock or SystemClock()
    identity = _identify(settings, clock)
    make_folders(settings)
    metrics = Metrics()
    bulletin = Bulletin()
    store = FsspecStore(settings.artifacts_url)
    database = Database(settings.database_url, bulletin.announce)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        await database.migrate()
        epoch = await take_lease(database, clock, settings.times.lease_s)
        stack.push_async_callback(give_up_lease, database, epoch)
        tasks = await stack.enter_async_context(Supervisor(_DIRECTOR))

        server = _build_server(settings, identity, metrics, clock)
        if launcher is None:
            configure = aggregator_configuration(
                settings, identity.authority, clock, lambda: _own_address(settings, server.port)
            )
            launcher = SubprocessLauncher(configure, _child_limits(settings))
        overseer = _build_overseer(settings, database, launcher, metrics, clock, tasks)
        logs = LogFolder(settings.work, settings.limits.log_bytes_per_site)
        attendance = Attendance(
            federation=settings.federation,
            database=database,
            logs=logs,
            clock=clock,
            lease_epoch=epoch,
            listener=overseer,
        )
        supervision = Supervision(database=database, clock=clock, listener=overseer, revoked=identity.revoked_serials)
        overseer.attach(attendance, supervision)
        intake = _build_intake(settings, database, store, clock, overseer, metrics)
        await intake.tidy()
        service = DirectorService(
            federation=settings.federation,
            clock=clock,
            certificate_expires_at=identity.expires_at,
            intake=intake,
            desk=Desk(database=database, bulletin=bulletin, logs=logs, attendance=attendance, overseer=overseer),
            exchange=Exchange(
                database=database,
                store=store,
                clock=clock,
                most_bytes=2 * settings.limits.max_model_bytes,
                metrics=metrics,
            ),
            attendance=attendance,
            supervision=supervision,
            enrolment=Enrolment(
                authority=identity.authority,
                database=database,
                clock=clock,
                aggregator_lifetime_s=settings.aggregators.certificate_days * 86400.0,
            ),
        )
        server.add_service(DESCRIPTOR, service)

        keeper = LeaseKeeper(database, clock, settings.times.lease_s, epoch=epoch, revoked=identity.revoked)
        if identity.revoked is not None:
            stack.callback(identity.revoked.subscribe(supervision.push_revoked))
        tasks.eternal("lease", keeper.keep())
        tasks.eternal("overseer", overseer.work())
        monitoring = MonitoringServer(
            settings.metrics.host,
            settings.metrics.port,
            metrics,
            {"database": lambda: overseer.trouble, "lease": lambda: keeper.trouble},
            supervision.metrics_targets,
        )
        stack.push_async_callback(monitoring.stop)
        metrics_port = await monitoring.start()
        stack.push_async_callback(server.stop, 0.0)
        port = await server.start()
        # Last in, first out: whatever ends the context, aggregators that still run are left to the next director.
        stack.callback(overseer.aggregators.release)
        await overseer.resume()
        yield Director(port=port, metrics_port=metrics_port, lease_epoch=epoch, overseer=overseer, server=server)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    """Who the director is; all None where it runs without TLS."""

    tls: TlsFiles | None = None
    authority: CertificateAuthority | None = None
    revoked: RevocationList | None = None

    def expires_at(self) -> float:
        """End of the director's own certificate, Unix seconds; 0 without one. Read anew: files are replaced."""
        return self.tls.facts().expires_at if self.tls else 0.0

    def revoked_serials(self) -> list[str]:
        """Serial numbers of revoked certificates, hex."""
        return [f"{serial:x}" for serial in sorted(self.revoked.serials)] if self.revoked else []


def _identify(settings: DirectorSettings, clock: Clock) -> _Identity:
    if settings.listen.insecure:
        _log.warning("running without TLS: everybody on this machine is who he says he is")
        return _Identity()
    section = settings.tls
    tls = TlsFiles(authority=section.authority, certificate=section.certificate, key=section.key)
    holder = tls.check(now=clock.now()).identity
    if holder.federation != settings.federation or holder.role is not Role.DIRECTOR:
        raise ConfigurationError(
            f"certificate {section.certificate} is of {holder}, expected a director of {settings.federation!r}: "
            "issue one with `federation pki issue director`"
        )
    authority = CertificateAuthority.load(section.ca)
    if authority.federation != settings.federation:
        raise ConfigurationError(f"the authority in {section.ca} is of federation {authority.federation!r}")
    return _Identity(tls=tls, authority=authority, revoked=RevocationList(section.revoked))


def check(settings: DirectorSettings) -> list[str]:
    """Check what can be checked without starting, and return what was found, for people.

    Raises:
        ConfigurationError: what is wrong.
    """
    clock = SystemClock()
    identity = _identify(settings, clock)
    tls, authority, revoked = identity.tls, identity.authority, identity.revoked
    lines = [f"federation {settings.federation}, listening at {settings.listen.host}:{settings.listen.port}"]
    if tls is not None and authority is not None:
        days = (tls.facts().expires_at - clock.now()) / 86400
        lines.append(f"certificate of {tls.facts().identity} is valid for {days:.0f} more days")
        lines.append(f"certificate authority is valid for {(authority.expires_at - clock.now()) / 86400:.0f} more days")
        lines.append(f"{len(revoked) if revoked else 0} certificates are revoked")
    else:
        lines.append("INSECURE: no TLS, loopback only")
    lines.append(f"database is {check_url(settings.database_url)}")
    lines.append(f"at most {settings.aggregators.max_running} experiments run at once")
    return lines


def make_folders(settings: DirectorSettings) -> None:
    """Make the folders the director keeps things in.

    Raises:
        ConfigurationError: they cannot be made.
    """
    try:
        for folder in (settings.state, settings.work):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"state folder {settings.state} cannot be made: {error.strerror}") from error


def _own_address(settings: DirectorSettings, port: int) -> str:
    host = _ANY_ADDRESS.get(settings.listen.host, settings.listen.host)
    return settings.aggregators.director or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _child_limits(settings: DirectorSettings) -> ChildLimits:
    section = settings.aggregators
    return ChildLimits(memory_bytes=section.memory_bytes, open_files=section.open_files)


def _patience(settings: DirectorSettings) -> Patience:
    times = settings.times
    return Patience(
        max_restarts=settings.aggregators.max_restarts,
        end_s=times.end_s,
        drain_s=times.drain_s,
        restart_s=times.restart_s,
        restart_max_s=times.restart_max_s,
    )


def _build_server(settings: DirectorSettings, identity: _Identity, metrics: Metrics, clock: Clock) -> RpcServer:
    if identity.tls is not None:
        metrics.watch_certificate(identity.tls.facts().identity.spiffe, identity.expires_at)
    authority = Authority(
        settings.federation,
        rules(),
        clock=clock,
        revoked=identity.revoked,
        limits=Limits(calls_per_identity=settings.limits.calls_per_identity),
    )
    return RpcServer(authority, metrics, tls=identity.tls, host=settings.listen.host, port=settings.listen.port)


def _build_overseer(
    settings: DirectorSettings,
    database: Database,
    launcher: Launcher,
    metrics: Metrics,
    clock: Clock,
    tasks: Supervisor,
) -> Overseer:
    return Overseer(
        actor=Identity(federation=settings.federation, role=Role.DIRECTOR, name=_DIRECTOR).spiffe,
        database=database,
        launcher=launcher,
        work=settings.work,
        clock=clock,
        metrics=metrics,
        slots=settings.aggregators.max_running,
        patience=_patience(settings),
        tasks=tasks,
    )


def _build_intake(
    settings: DirectorSettings,
    database: Database,
    store: FsspecStore,
    clock: Clock,
    overseer: Overseer,
    metrics: Metrics,
) -> Intake:
    limits = settings.limits
    return Intake(
        federation=FederationName(settings.federation),
        database=database,
        store=store,
        incoming=settings.state / "incoming",
        clock=clock,
        allowance=Allowance(
            bundle_bytes=limits.max_bundle_bytes,
            model_bytes=limits.max_model_bytes,
            experiments=limits.experiments_per_user,
        ),
        metrics=metrics,
        submitted=overseer.reconsider,
    )
