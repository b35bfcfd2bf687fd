"""The director, assembled: one function reads top to bottom, what it builds is passed on by hand.

Rules, in order:

1. Nothing is served before the database is migrated, its lease is ours, and half submissions are taken back.
2. The lease is kept by a timer at a third of its length; a director that loses it stops at once and leaves its
   aggregators to whoever has it now. The same timer looks at the revocation list, so that open streams of revoked
   peers end.
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

from director import holder
from director.attendance import Attendance
from director.bulletin import Bulletin
from director.desk import Desk
from director.enrolment import Enrolment, aggregator_configuration
from director.exchange import Exchange
from director.intake import Allowance, Intake
from director.launcher import SubprocessLauncher
from director.logs import LogFolder
from director.overseer import Overseer
from director.running import Patience
from director.service import DESCRIPTOR, DirectorService, rules
from director.store import lease
from director.store.database import Database, check_url
from director.supervision import Supervision
from federation.errors import ConfigurationError, ConflictError, StorageError
from federation.names import FederationName, Identity, Role
from federation.pki.authority import CertificateAuthority
from federation.pki.revocation import RevocationList
from federation.runtime.children import Limits as ChildLimits
from federation.runtime.notify import notify_ready, notify_stopping
from federation.runtime.clock import SystemClock, pause
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
    tls, authority, revoked = _credentials(settings, clock)
    make_folders(settings)
    metrics = Metrics()
    bulletin = Bulletin()
    store = FsspecStore(settings.artifacts_url)
    database = Database(settings.database_url, bulletin.announce)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        await database.migrate()
        held = await _take_lease(database, settings, clock)
        stack.push_async_callback(_give_up_lease, database, held)
        tasks = await stack.enter_async_context(Supervisor(_DIRECTOR))
        actor = Identity(federation=settings.federation, role=Role.DIRECTOR, name=_DIRECTOR).spiffe
        server = RpcServer(
            Authority(
                settings.federation,
                rules(),
                clock=clock,
                revoked=revoked,
                limits=Limits(calls_per_identity=settings.limits.calls_per_identity),
            ),
            metrics,
            tls=tls,
            host=settings.listen.host,
            port=settings.listen.port,
        )
        configure = aggregator_configuration(settings, authority, clock, lambda: _own_address(settings, server.port))
        overseer = Overseer(
            actor=actor,
            database=database,
            launcher=launcher or SubprocessLauncher(configure, _child_limits(settings)),
            work=settings.work,
            clock=clock,
            metrics=metrics,
            slots=settings.aggregators.max_running,
            patience=_patience(settings),
            tasks=tasks,
        )
        logs = LogFolder(settings.work, settings.limits.log_bytes_per_site)
        attendance = Attendance(
            federation=settings.federation,
            database=database,
            logs=logs,
            clock=clock,
            lease_epoch=held,
            listener=overseer,
        )
        supervision = Supervision(
            database=database,
            clock=clock,
            listener=overseer,
            revoked=lambda: [f"{serial:x}" for serial in sorted(revoked.serials)] if revoked else [],
        )
        overseer.attach(attendance, supervision)
        intake = _intake(settings, database, store, clock, overseer)
        await intake.tidy()
        service = DirectorService(
            federation=settings.federation,
            clock=clock,
            certificate_expires_at=lambda: tls.facts().expires_at if tls else 0.0,
            intake=intake,
            desk=Desk(database=database, bulletin=bulletin, logs=logs, attendance=attendance, overseer=overseer),
            exchange=Exchange(
                database=database, store=store, clock=clock, most_bytes=settings.limits.max_model_bytes * 2
            ),
            attendance=attendance,
            supervision=supervision,
            enrolment=Enrolment(
                authority=authority,
                database=database,
                clock=clock,
                aggregator_lifetime_s=settings.aggregators.certificate_days * 86400.0,
            ),
        )
        server.add_service(DESCRIPTOR, service)
        keeper = _Keeper(database, clock, settings.times.lease_s, held, revoked)
        if revoked is not None:
            stack.callback(revoked.subscribe(supervision.push_revoked))
        if tls is not None:
            metrics.watch_certificate(actor, lambda: tls.facts().expires_at)
        tasks.eternal("lease", keeper.keep())
        tasks.eternal("overseer", overseer.work())
        monitoring = MonitoringServer(
            settings.metrics.host,
            settings.metrics.port,
            metrics,
            {"database": lambda: overseer.trouble, "lease": lambda: keeper.trouble},
            supervision.metrics_targets,
        )
        metrics_port = await monitoring.start()
        stack.push_async_callback(monitoring.stop)
        port = await server.start()
        stack.push_async_callback(server.stop, 0.0)
        # Last in, first out: whatever ends the context, aggregators that still run are left to the next director.
        stack.callback(overseer.aggregators.release)
        await overseer.resume()
        yield Director(port=port, metrics_port=metrics_port, lease_epoch=held, overseer=overseer, server=server)


class _Keeper:
    """Keeps the lease, and looks at the revocation list while it is at it.

    Attributes:
        trouble: why the lease could not be prolonged at the last try; None if it could.
    """

    def __init__(
        self, database: Database, clock: Clock, lasts_s: float, epoch: int, revoked: RevocationList | None
    ) -> None:
        self.trouble: str | None = None
        self._database = database
        self._clock = clock
        self._lasts_s = lasts_s
        self._epoch = epoch
        self._revoked = revoked

    async def keep(self) -> None:
        """Prolong the lease for ever.

        Raises:
            ConflictError: it was lost.
        """
        until = self._clock.monotonic() + self._lasts_s
        while True:
            await pause(self._clock, self._lasts_s / 3)
            asked = self._clock.monotonic()
            try:
                await self._database.transact(
                    lease.keep, epoch=self._epoch, now=self._clock.now(), lasts_s=self._lasts_s
                )
                until, self.trouble = asked + self._lasts_s, None
            except StorageError as error:
                self.trouble = str(error)
                if self._clock.monotonic() >= until:
                    raise ConflictError(f"the lease could not be kept and has run out: {error}") from error
            self._look_for_revocations()

    def _look_for_revocations(self) -> None:
        if self._revoked is not None:
            try:
                self._revoked.reload()
            except ConfigurationError as error:
                _log.error("revocation list cannot be read; calls are refused", reason=str(error))


async def _take_lease(database: Database, settings: DirectorSettings, clock: Clock) -> int:
    try:
        return await database.transact(
            lease.take,
            holder=holder.describe(),
            now=clock.now(),
            lasts_s=settings.times.lease_s,
            is_dead=holder.is_dead,
        )
    except ConflictError as error:
        raise ConfigurationError(str(error)) from error


async def _give_up_lease(database: Database, epoch: int) -> None:
    try:
        await database.transact(lease.give_up, epoch=epoch)
    except StorageError as error:
        _log.warning("lease not given up; it runs out by itself", reason=str(error))


def _credentials(
    settings: DirectorSettings, clock: Clock
) -> tuple[TlsFiles | None, CertificateAuthority | None, RevocationList | None]:
    if settings.listen.insecure:
        _log.warning("running without TLS: everybody on this machine is who he says he is")
        return None, None, None
    tls = TlsFiles(authority=settings.tls.authority, certificate=settings.tls.certificate, key=settings.tls.key)
    identity = tls.check(now=clock.now()).identity
    if identity.federation != settings.federation or identity.role is not Role.DIRECTOR:
        raise ConfigurationError(
            f"certificate {settings.tls.certificate} is of {identity}, expected a director of {settings.federation!r}: "
            "issue one with `federation pki issue director`"
        )
    authority = CertificateAuthority.load(settings.tls.ca)
    if authority.federation != settings.federation:
        raise ConfigurationError(f"the authority in {settings.tls.ca} is of federation {authority.federation!r}")
    return tls, authority, RevocationList(settings.tls.revoked)


def check(settings: DirectorSettings) -> list[str]:
    """Check what can be checked without starting, and return what was found, for people.

    Raises:
        ConfigurationError: what is wrong.
    """
    clock = SystemClock()
    tls, authority, revoked = _credentials(settings, clock)
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


def _intake(
    settings: DirectorSettings, database: Database, store: FsspecStore, clock: Clock, overseer: Overseer
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
        submitted=overseer.reconsider,
    )
