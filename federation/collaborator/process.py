"""The collaborator, assembled: made top to bottom, run until one of its endings, ended in the opposite order.

Endings, each an exit record that the envoy reads: ``finished`` (the aggregator said so), ``failed`` (this site can do
no task), ``stopped`` (the envoy or a signal asked; a task in progress may end first), ``superseded`` (another
collaborator of this site took over), ``orphaned`` (no envoy for too long), ``fault`` (anything unforeseen; the envoy
starts it again).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.collaborator.config import CollaboratorConfig
from federation.collaborator.downloads import Downloads
from federation.collaborator.exchange import Exchange
from federation.collaborator.link import LinkHolder
from federation.collaborator.ordering import UnsignedPlanError
from federation.collaborator.parent import EnvoyLine, Status
from federation.collaborator.session import SessionKeeper, SupersededError
from federation.collaborator.state import StateFile
from federation.collaborator.task_queue import CannotTakePartError, TaskQueue
from federation.collaborator.trainers import shard_configs, trainer_settings
from federation.collaborator.uploads import Uploads
from federation.collaborator.warm_trainer import WarmTrainer
from federation.collaborator.work import Work
from federation.errors import ConfigurationError, FederationError, StorageError
from federation.names import Digest, Identity, Role, RoundNumber
from federation.plan import ExperimentSpec
from federation.runtime.clock import SystemClock
from federation.runtime.orphans import Lease
from federation.runtime.records import ExitRecord, boot_id, write_exit_record
from federation.runtime.shutdown import Shutdown
from federation.runtime.tasks import Supervisor
from federation.storage.retained import Retention
from federation.telemetry import logs
from federation.telemetry.http import MonitoringServer
from federation.telemetry.metrics import Metrics
from federation.transport.channels import open_channel, split_address
from federation.transport.credentials import TlsFiles
from federation.transport.lines import BulkAddress
from federation.transport.methods import Stub
from federation.v1 import aggregator_pb2, trainer_pb2
from federation.wire.schemas import schema_to_proto

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from federation.runtime.clock import Clock
    from federation.wire.payloads import Payload

_log = logging.getLogger(__name__)
_SERVICE = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"]
_TRAINER_GRACE_S = 5.0
_TELL_S = 2.0
_CLEAN = ("finished", "stopped")


def main() -> None:
    """Run one collaborator; the exit code is 0 if it finished or was stopped."""
    parser = argparse.ArgumentParser(prog="python -m federation.collaborator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the JSON file the envoy wrote")
    try:
        config = CollaboratorConfig.read(parser.parse_args().config)
    except FederationError as error:
        sys.exit(f"collaborator: {error}")
    logs.configure(config.log_level.upper(), role="collaborator", experiment=config.experiment, site=config.site)
    clock = SystemClock()
    try:
        record = asyncio.run(run(config, clock))
    except FederationError as error:
        _log.error("cannot run: %s", error)
        # What is not usable now would not be at the next start either, unless the owner mends it.
        outcome = "failed" if isinstance(error, ConfigurationError) else "fault"
        record = ExitRecord(outcome=outcome, error_class=type(error).__name__, reason=str(error), at=clock.now())
    except Exception as error:
        _log.exception("fault")
        record = ExitRecord(outcome="fault", error_class=type(error).__name__, reason=str(error), at=clock.now())
    write_exit_record(config.folder, record)
    sys.exit(0 if record.outcome in _CLEAN else 1)


async def run(config: CollaboratorConfig, clock: Clock) -> ExitRecord:
    """Take part in the experiment until it ends here, and say how it did.

    Raises:
        FederationError: the process could not be assembled.
    """
    shutdown = Shutdown()
    shutdown.install()
    config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    metrics = Metrics()
    place = _Place(config.aggregator_address, config.aggregator_server_name, _tls(config, metrics))
    parts = _assemble(config, place, metrics, clock)
    checks = {"session": lambda: parts.session.trouble, "trainer": lambda: parts.trainer.trouble}
    monitoring = MonitoringServer(config.metrics_host, 0, metrics, checks, None)
    port = await monitoring.start()
    try:
        async with Supervisor("collaborator") as supervisor:
            lease = Lease(config.orphan_s, clock)
            line = EnvoyLine(
                path=config.envoy_socket,
                experiment=config.experiment,
                metrics_address=f"{config.metrics_host}:{port}",
                lease=lease,
                clock=clock,
                on_stop=lambda reason, drain: _ask_to_stop(shutdown, reason, drain=drain),
                on_aggregator=lambda address, name: _move(place, parts.session, address, name),
                on_certificate=lambda: parts.session.renew() if place.has_newer_certificate() else None,
            )
            parts.on_round(lambda number: _begin_round(line, metrics, number))
            supervisor.eternal("envoy-line", line.run())
            await asyncio.to_thread(parts.work.recover)
            record = await _first_ending(parts, config, shutdown, lease, clock)
            await _end_trainer(parts.trainer, gently=record.outcome in _CLEAN)
            await _tell(line, record, parts)
            return record
    finally:
        await monitoring.stop()
        shutdown.uninstall()


@dataclass(slots=True)
class _Place:
    """Where the aggregator is now, and with which certificate it was dialled last."""

    address: str
    server_name: str
    tls: TlsFiles | None
    serial: int = 0

    def dial(self) -> grpc.aio.Channel:
        """Open a channel with the certificate files as they are now."""
        # Read first: a renewal in between makes one session too many, the other way round it would be missed.
        self.serial = self.tls.facts().serial if self.tls is not None else 0
        return open_channel(self.address, server_name=self.server_name, tls=self.tls)

    def bulk_address(self, port: int) -> BulkAddress | None:
        """Return where lines are dialled."""
        if self.tls is None:
            return None
        host, _ = split_address(self.address)
        return BulkAddress(host, port, server_name=self.server_name, tls=self.tls)

    def has_newer_certificate(self) -> bool:
        """Whether the files hold another certificate than the last channel was opened with."""
        if self.tls is None or not self.serial:
            return False
        try:
            return self.tls.facts().serial != self.serial
        except ConfigurationError as error:
            _log.warning("the renewed certificate cannot be read: %s", error)
            return False


@dataclass(slots=True, kw_only=True)
class _Parts:
    session: SessionKeeper
    queue: TaskQueue
    work: Work
    trainer: WarmTrainer
    base: asyncio.Future[Payload | None]

    def on_round(self, callback: Callable[[RoundNumber], None]) -> None:
        self.queue.on_round = callback


def _assemble(config: CollaboratorConfig, place: _Place, metrics: Metrics, clock: Clock) -> _Parts:
    try:
        signed = config.spec_file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"spec {config.spec_file} cannot be read: {error}") from error
    spec = ExperimentSpec.parse(signed)
    identity = Identity(federation=config.federation, role=Role.ENVOY, name=config.site)
    exchange, links = Exchange(config.exchange), LinkHolder()
    trainer = _trainer(config, spec, signed, metrics, clock)
    work = Work(
        config=config,
        spec=spec,
        exchange=exchange,
        downloads=Downloads(
            experiment=config.experiment, exchange=exchange, spec=spec, links=links, metrics=metrics, clock=clock
        ),
        uploads=Uploads(
            links=links,
            metrics=metrics,
            clock=clock,
            schemas={plan.name: plan.schema for plan in spec.uploads()},
        ),
        trainer=trainer,
        retention=Retention(config.folder / "retained", boot=boot_id()),
        metrics=metrics,
    )
    state = StateFile(config.folder / "state")
    queue = TaskQueue(
        spec=spec,
        plan_digest=Digest(hashlib.sha256(signed).digest()),
        initial_model=Digest(bytes.fromhex(config.initial_model)),
        work=work,
        links=links,
        state=state,
        progress=state.load(),
        on_round=lambda _: None,
    )
    trainer.on_pause = queue.trainer_paused
    base: asyncio.Future[Payload | None] = asyncio.get_running_loop().create_future()

    session = SessionKeeper(
        open_channel=place.dial,
        bulk_address=place.bulk_address,
        make_stub=lambda channel: Stub(channel, _SERVICE, identity=identity if place.tls is None else None),
        experiment=config.experiment,
        initial_base=Digest(bytes.fromhex(config.initial_base)),
        queue=queue,
        links=links,
        clock=clock,
        on_base=base.set_result,
    )
    return _Parts(session=session, queue=queue, work=work, trainer=trainer, base=base)


def _tls(config: CollaboratorConfig, metrics: Metrics) -> TlsFiles | None:
    if config.authority is None or config.certificate is None or config.key is None:
        return None
    tls = TlsFiles(authority=config.authority, certificate=config.certificate, key=config.key)
    metrics.watch_certificate(tls.facts().identity.spiffe, lambda: tls.facts().expires_at)
    return tls


def _trainer(
    config: CollaboratorConfig, spec: ExperimentSpec, signed: bytes, metrics: Metrics, clock: Clock
) -> WarmTrainer:
    settings = trainer_settings(
        config.trainer,
        config.shards,
        name=f"trainer of {config.experiment}",
        folder=config.folder / "trainer",
        log=config.trainer_log,
        workspace=config.workspace,
        exchange=config.exchange,
        bundle=config.bundle_folder,
        hidden=config.hidden,
        threads=spec.plan.threads,
    )
    order = trainer_pb2.PrepareTrainer(
        experiment=config.experiment,
        site=config.site,
        bundle_folder=str(settings.bundle),
        workspace=str(settings.workspace),
        shards=shard_configs(config.shards),
        schema=schema_to_proto(spec.schema_),
        spec_json=signed.decode(),
    )
    return WarmTrainer(
        settings=settings,
        order=order,
        max_deaths=config.trainer.max_deaths,
        prepare_s=config.prepare_s,
        clock=clock,
        on_death=metrics.child_restarts_total.labels("trainer").inc,
    )


async def _first_ending(
    parts: _Parts, config: CollaboratorConfig, shutdown: Shutdown, lease: Lease, clock: Clock
) -> ExitRecord:
    """Run session and queue until something ends the site's part, and return what it was."""
    async with Supervisor("taking-part") as supervisor:
        endings = {
            supervisor.job("session", _until_finish(parts, clock)),
            supervisor.job("queue", _until_permanent_failure(parts, clock)),
            supervisor.job("stop", _until_stopped(parts, shutdown, config.drain_s, clock)),
            supervisor.job("orphan", _until_orphaned(lease, clock)),
        }
        done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()


async def _until_finish(parts: _Parts, clock: Clock) -> ExitRecord:
    try:
        finish = await parts.session.run()
    except SupersededError as error:
        return ExitRecord(outcome="superseded", error_class="SupersededError", reason=str(error), at=clock.now())
    except UnsignedPlanError as error:
        return ExitRecord(outcome="failed", error_class="UnsignedPlanError", reason=str(error), at=clock.now())
    said = f"{finish.outcome}: {finish.reason}" if finish.reason else finish.outcome
    return ExitRecord(outcome="finished", reason=said[:1000], at=clock.now())


async def _until_permanent_failure(parts: _Parts, clock: Clock) -> ExitRecord:
    try:
        await parts.queue.run(await parts.base)
    except CannotTakePartError as error:
        await parts.session.say_goodbye()
        return ExitRecord(outcome="failed", error_class=error.error_class, reason=str(error), at=clock.now())
    # It was closed because a stop was asked for, and that is what ends this process.
    never: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
    return await never


async def _until_stopped(parts: _Parts, shutdown: Shutdown, drain_s: float, clock: Clock) -> ExitRecord:
    await shutdown.draining.wait()
    closing = asyncio.create_task(_close(parts), name="close-queue")
    hurry = asyncio.create_task(shutdown.stop_now.wait(), name="stop-now")
    try:
        await asyncio.wait({closing, hurry}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closing.cancel()
        hurry.cancel()
        await asyncio.gather(closing, hurry, return_exceptions=True)
    return ExitRecord(outcome="stopped", reason=shutdown.reason, at=clock.now())


async def _close(parts: _Parts) -> None:
    # At once, as an upload may outlast the drain; and in the end, as work in progress may have left an update.
    await asyncio.gather(_seal(parts), parts.queue.close())
    await _seal(parts)


async def _seal(parts: _Parts) -> None:
    try:
        await parts.work.seal()
    except StorageError as error:
        _log.warning("the kept update could not be digested: %s", error)


async def _until_orphaned(lease: Lease, clock: Clock) -> ExitRecord:
    await lease.expired()
    return ExitRecord(outcome="orphaned", reason="no envoy came back in time", at=clock.now())


async def _end_trainer(trainer: WarmTrainer, *, gently: bool) -> None:
    if not gently:
        trainer.kill()
    await trainer.end(_TRAINER_GRACE_S)


async def _tell(line: EnvoyLine, record: ExitRecord, parts: _Parts) -> None:
    """Tell the envoy how it ended, if it is there to hear; the exit record says so in any case."""
    if record.outcome == "stopped":
        return
    state = "finished" if record.outcome == "finished" else "failed"
    number = parts.queue.progress.newest.round
    detail = record.reason if state == "failed" and parts.work.config.release_tracebacks else ""
    line.report(Status(state=state, round=number, error_class=record.error_class, detail=detail))
    try:
        await asyncio.wait_for(line.told(), _TELL_S)
    except TimeoutError:
        _log.info("the envoy is not there to hear of the end")


def _begin_round(line: EnvoyLine, metrics: Metrics, number: RoundNumber) -> None:
    metrics.round_number.set(number)
    line.report(Status(state="running", round=number))


def _ask_to_stop(shutdown: Shutdown, reason: str, *, drain: bool) -> None:
    shutdown.request(reason)
    if not drain:
        shutdown.request(reason)


def _move(place: _Place, session: SessionKeeper, address: str, server_name: str) -> None:
    if not address or not server_name:
        return
    if (address, server_name) == (place.address, place.server_name):
        session.aggregator_is_there()
    else:
        place.address, place.server_name = address, server_name
        session.redial()
