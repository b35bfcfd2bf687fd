"""The director, assembled: `serving` reads top to bottom, what its steps build is passed on by hand.

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
from director.checking import without_lines
from director.desk import Desk
from director.enrolment import Enrolment, aggregator_configuration
from director.exchange import Exchange
from director.identity import identify
from director.intake import Allowance, Intake
from director.launcher import SubprocessLauncher
from director.leasing import LeaseKeeper, give_up_lease, take_lease
from director.logs import LogFolder
from director.overseer import Overseer
from director.running import Patience
from director.service import DESCRIPTOR, DirectorService, rules
from director.store.database import Database
from director.supervision import Supervision
from federation.errors import ConfigurationError
from federation.names import FederationName, Identity, Role
from federation.runtime.children import Limits as ChildLimits
from federation.runtime.clock import SystemClock
from federation.runtime.notify import notify_ready, notify_stopping
from federation.runtime.tasks import Supervisor
from federation.storage.artifacts import FsspecStore
from federation.telemetry.http import MonitoringServer
from federation.telemetry.logs import get_logger
from federation.telemetry.metrics import Metrics
from federation.transport.authority import Authority, Limits
from federation.transport.server import RpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from director.config import DirectorSettings
    from director.identity import DirectorIdentity
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
        if without := without_lines(settings):
            _log.warning("no ports for bulk lines", reason=without)
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
    async with AsyncExitStack() as stack:
        ground = await _lay_ground(stack, settings, clock or SystemClock())
        parts = _build_parts(ground, launcher)
        await parts.intake.tidy()
        ground.server.add_service(DESCRIPTOR, _build_service(ground, parts))
        yield await _begin(stack, ground, parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What every part stands on.

    Attributes:
        settings: what to be.
        identity: who the director is.
        clock: time.
        metrics: what is counted.
        bulletin: tells watchers of what was committed.
        database: migrated, its lease ours.
        epoch: of the lease.
        store: where artifacts lie.
        tasks: owner of what runs for long.
        server: not started yet.
    """

    settings: DirectorSettings
    identity: DirectorIdentity
    clock: Clock
    metrics: Metrics
    bulletin: Bulletin
    database: Database
    epoch: int
    store: FsspecStore
    tasks: Supervisor
    server: RpcServer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the service answers with, and what acts by itself."""

    overseer: Overseer
    logs: LogFolder
    attendance: Attendance
    supervision: Supervision
    intake: Intake


async def _lay_ground(stack: AsyncExitStack, settings: DirectorSettings, clock: Clock) -> _Ground:
    """Rule 1: own the database before anything else is built; `stack` gives it up at the end."""
    identity = identify(settings, clock)
    if identity.tls is None:
        _log.warning("running without TLS: everybody on this machine is who he says he is")
    make_folders(settings)
    metrics, bulletin = Metrics(), Bulletin()
    store = FsspecStore(settings.artifacts_url)
    database = Database(settings.database_url, bulletin.announce)
    stack.push_async_callback(database.close)
    await database.migrate()
    epoch = await take_lease(database, clock, settings.times.lease_s)
    stack.push_async_callback(give_up_lease, database, epoch)
    return _Ground(
        settings=settings,
        identity=identity,
        clock=clock,
        metrics=metrics,
        bulletin=bulletin,
        database=database,
        epoch=epoch,
        store=store,
        tasks=await stack.enter_async_context(Supervisor(_DIRECTOR)),
        server=_build_server(settings, identity, metrics, clock),
    )


def _build_parts(ground: _Ground, launcher: Launcher | None) -> _Parts:
    """Build what acts, and make it known to each other; nothing runs yet."""
    settings, clock, database = ground.settings, ground.clock, ground.database
    overseer = _build_overseer(ground, launcher or _local_launcher(ground))
    logs = LogFolder(settings.work, settings.limits.log_bytes_per_site)
    attendance = Attendance(
        federation=settings.federation,
        database=database,
        logs=logs,
        clock=clock,
        lease_epoch=ground.epoch,
        listener=overseer,
    )
    revoked = ground.identity.revoked_serials
    supervision = Supervision(database=database, clock=clock, listener=overseer, revoked=revoked)
    overseer.attach(attendance, supervision)
    return _Parts(
        overseer=overseer,
        logs=logs,
        attendance=attendance,
        supervision=supervision,
        intake=_build_intake(ground, overseer),
    )


def _build_service(ground: _Ground, parts: _Parts) -> DirectorService:
    """Build what answers calls."""
    settings, clock, database = ground.settings, ground.clock, ground.database
    return DirectorService(
        federation=settings.federation,
        clock=clock,
        certificate_expires_at=ground.identity.expires_at,
        intake=parts.intake,
        desk=Desk(
            database=database,
            bulletin=ground.bulletin,
            logs=parts.logs,
            attendance=parts.attendance,
            overseer=parts.overseer,
        ),
        exchange=Exchange(
            database=database,
            store=ground.store,
            clock=clock,
            most_bytes=2 * settings.limits.max_model_bytes,
            metrics=ground.metrics,
        ),
        attendance=parts.attendance,
        supervision=parts.supervision,
        enrolment=Enrolment(
            authority=ground.identity.authority,
            database=database,
            clock=clock,
            aggregator_lifetime_s=settings.aggregators.certificate_days * 86400.0,
        ),
    )


async def _begin(stack: AsyncExitStack, ground: _Ground, parts: _Parts) -> Director:
    """Keep the lease, work, be watched, serve, and go on with what runs; `stack` undoes it in reverse."""
    settings, revoked, tasks = ground.settings, ground.identity.revoked, ground.tasks
    overseer, supervision = parts.overseer, parts.supervision
    keeper = LeaseKeeper(ground.database, ground.clock, settings.times.lease_s, epoch=ground.epoch, revoked=revoked)
    if revoked is not None:
        stack.callback(revoked.subscribe(supervision.push_revoked))
    tasks.eternal("lease", keeper.keep())
    tasks.eternal("overseer", overseer.work())
    monitoring = MonitoringServer(
        settings.metrics.host,
        settings.metrics.port,
        ground.metrics,
        {"database": lambda: overseer.trouble, "lease": lambda: keeper.trouble},
        supervision.metrics_targets,
    )
    stack.push_async_callback(monitoring.stop)
    metrics_port = await monitoring.start()
    stack.push_async_callback(ground.server.stop, 0.0)
    port = await ground.server.start()
    # Last in, first out: whatever ends the context, aggregators that still run are left to the next director.
    stack.callback(overseer.aggregators.release)
    await overseer.resume()
    return Director(
        port=port, metrics_port=metrics_port, lease_epoch=ground.epoch, overseer=overseer, server=ground.server
    )


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


def _build_server(settings: DirectorSettings, identity: DirectorIdentity, metrics: Metrics, clock: Clock) -> RpcServer:
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


def _local_launcher(ground: _Ground) -> Launcher:
    settings, server = ground.settings, ground.server
    authority, clock = ground.identity.authority, ground.clock
    configure = aggregator_configuration(settings, authority, clock, lambda: _own_address(settings, server.port))
    return SubprocessLauncher(configure, _child_limits(settings))


def _build_overseer(ground: _Ground, launcher: Launcher) -> Overseer:
    settings = ground.settings
    return Overseer(
        actor=Identity(federation=settings.federation, role=Role.DIRECTOR, name=_DIRECTOR).spiffe,
        database=ground.database,
        launcher=launcher,
        work=settings.work,
        clock=ground.clock,
        metrics=ground.metrics,
        slots=settings.aggregators.max_running,
        patience=_patience(settings),
        tasks=ground.tasks,
    )


def _build_intake(ground: _Ground, overseer: Overseer) -> Intake:
    settings, limits = ground.settings, ground.settings.limits
    return Intake(
        federation=FederationName(settings.federation),
        database=ground.database,
        store=ground.store,
        incoming=settings.state / "incoming",
        clock=ground.clock,
        allowance=Allowance(
            bundle_bytes=limits.max_bundle_bytes,
            model_bytes=limits.max_model_bytes,
            experiments=limits.experiments_per_user,
        ),
        metrics=ground.metrics,
        submitted=overseer.reconsider,
    )
