"""``python -m federation.aggregator --config FILE``: one experiment's aggregator, assembled and run.

How it ends, as its exit record says: ``completed`` or ``failed`` (all rounds are over and the director knows),
``cancelled`` or ``superseded`` (the director said so), ``drained`` (SIGTERM: the journal is intact, a later process
goes on), ``orphaned`` (alone for too long; likewise), or ``fault``. The exit code is 0 unless it is a fault (1) or the
configuration is not usable (2).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from federation.aggregator.checkpoints import Checkpoints
from federation.aggregator.config import AggregatorConfig
from federation.aggregator.control import Control
from federation.aggregator.driver import Driver
from federation.aggregator.ledger import Ledger
from federation.aggregator.links import Links
from federation.aggregator.service import AggregatorService
from federation.aggregator.sessions import Bounds
from federation.aggregator.supervision import DirectorSupervision, NoSupervision
from federation.aggregator.transfers import Transfers, write_history
from federation.errors import ConfigurationError, ConflictError, FederationError
from federation.names import Digest, RoundNumber
from federation.plan import ExperimentSpec
from federation.runtime.clock import SystemClock
from federation.runtime.notify import notify_ready
from federation.runtime.orphans import Lease
from federation.runtime.records import ExitRecord, write_exit_record
from federation.runtime.shutdown import Shutdown
from federation.runtime.tasks import Supervisor
from federation.storage.spool import Spool
from federation.telemetry import logs
from federation.telemetry.http import MonitoringServer
from federation.telemetry.metrics import Metrics
from federation.v1 import aggregator_pb2, director_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from federation.aggregator.supervision import Supervision
    from federation.names import SiteName
    from federation.rounds.events import Finish
    from federation.runtime.clock import Clock

SPEC_FILE, INITIAL_FILE = "spec.json", "initial.safetensors"


class Aggregator:
    """One experiment's aggregator; `run` is its life.

    Args:
        config: what the director fixed.
        clock: where time comes from.
        shutdown: whether the process is to stop.

    Attributes:
        metrics: of this process.
        driver: runs the rounds; there once `started` is set.
        address: ``host:port`` that collaborators dial; there once `started` is set.
        metrics_address: ``host:port`` of ``/metrics``; likewise.
        started: set once sites can connect.
    """

    driver: Driver
    address: str
    metrics_address: str

    def __init__(
        self, config: AggregatorConfig, *, clock: Clock | None = None, shutdown: Shutdown | None = None
    ) -> None:
        self.config = config
        self.metrics = Metrics()
        self.started = asyncio.Event()
        self._clock: Clock = clock or SystemClock()
        self._shutdown = shutdown or Shutdown()
        self._lease = Lease(config.orphan_s, self._clock)
        self._log = logs.get_logger(__name__).bind(experiment=config.experiment, epoch=config.epoch)

    async def run(self) -> ExitRecord:
        """Run to the end, and return how it was.

        Raises:
            FederationError: the configuration, the disk or a peer does not allow it.
        """
        async with AsyncExitStack() as stack:
            self._disk = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="disk"))
            self._pool = stack.enter_context(ThreadPoolExecutor(self.config.threads, thread_name_prefix="pieces"))
            self._links = await stack.enter_async_context(Links(self.config, self.metrics, self._clock))
            self._control = Control(self._shutdown, self._lease, self._links.revocations)
            supervisor = await stack.enter_async_context(Supervisor("aggregator"))
            finish = await self._control.race(self._live(stack, supervisor))
            if finish.outcome in ("cancelled", "superseded") and self.started.is_set():
                if finish.outcome == "cancelled":
                    await self._on_disk(self._ledger.record_ended, finish)
                await self._part(finish)
            return ExitRecord(outcome=finish.outcome, reason=finish.reason, at=self._clock.now())

    async def _live(self, stack: AsyncExitStack, supervisor: Supervisor) -> Finish:
        """Everything from the first file to the director's last word; what it opens, `stack` closes."""
        config = self.config
        transfers = None
        if self._links.has_director:
            if self._links.renewal is not None:
                supervisor.eternal("certificate", self._links.renewal.run())
            transfers = Transfers(self._links.director, config.experiment, self._lease, self._clock)
        spec, spec_digest = await self._load_spec(transfers)
        self._ledger = ledger = await self._on_disk(
            lambda: Ledger.open(config.folder, epoch=config.epoch, spec_digest=spec_digest)
        )
        # Closed in the disk's own thread, after whatever it is still doing.
        stack.push_async_callback(self._on_disk, ledger.close)
        checkpoints = Checkpoints(config.folder, config.experiment, spec)
        standpoint = ledger.standpoint
        await self._on_disk(checkpoints.prepare, RoundNumber(standpoint.round - 1), standpoint.score.best_round)
        spool = await self._on_disk(Spool, config.folder / "spool")
        stack.push_async_callback(self._on_disk, spool.close)
        supervision = self._make_supervision()
        self.driver = Driver(
            experiment=config.experiment,
            epoch=config.epoch,
            spec=spec,
            ledger=ledger,
            checkpoints=checkpoints,
            spool=spool,
            supervision=supervision,
            disk=self._disk,
            pool=self._pool,
            clock=self._clock,
            lines=self._links.lines,
            metrics=self.metrics,
            site_grace_s=config.site_grace_s,
        )
        stack.push_async_callback(self.driver.close)
        await self.driver.start()
        await self._listen(stack, AggregatorService(self.driver, ledger, spec_digest), standpoint.port)
        port = int(self.address.rpartition(":")[2])
        await self._on_disk(lambda: ledger.record_opened(epoch=config.epoch, port=port, spec_digest=spec_digest))
        self._control.attach(self.driver.sessions)
        if isinstance(supervision, DirectorSupervision):
            self._links.on_renewed = supervision.redial
            supervisor.job("supervision", supervision.run(self.address, self.metrics_address), critical=True)
        else:
            self._control.roster(self._fixed_roster())
        self.started.set()
        notify_ready(address=self.address, metrics_address=self.metrics_address)
        self._log.info("aggregator runs", address=self.address, metrics=self.metrics_address)
        finish = await self.driver.run()
        await self._conclude(finish, supervision, transfers, checkpoints)
        return finish

    def _make_supervision(self) -> DirectorSupervision | NoSupervision:
        if not self._links.has_director:
            return NoSupervision()
        return DirectorSupervision(
            self._links.director,
            experiment=self.config.experiment,
            epoch=self.config.epoch,
            reports=lambda after: self._ledger.records(after=after),
            last_sequence=lambda: self._ledger.last_sequence,
            orders=self._control,
            lease=self._lease,
            clock=self._clock,
        )

    def _fixed_roster(self) -> dict[SiteName, Bounds]:
        return {
            row.site: Bounds(train_examples=row.train_examples, validation_examples=row.validation_examples)
            for row in self.config.roster
        }

    async def _load_spec(self, transfers: Transfers | None) -> tuple[ExperimentSpec, Digest]:
        path = self.config.folder / SPEC_FILE
        if transfers is not None:
            await transfers.fetch(SPEC_FILE, path)
            await transfers.fetch(INITIAL_FILE, self.config.folder / INITIAL_FILE)
        try:
            document = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read, and there is no director to fetch it from") from error
        return ExperimentSpec.parse(document), Digest(hashlib.sha256(document).digest())

    async def _listen(self, stack: AsyncExitStack, service: AggregatorService, last_port: int) -> None:
        config = self.config
        stack.push_async_callback(self._links.lines.stop)  # after the server, whose calls use them
        server = await self._links.serve(service, last_port)
        stack.push_async_callback(server.stop, config.stop_grace_s)
        self.address = f"{config.advertised_host or config.listen_host}:{server.port}"
        renewal = self._links.renewal
        readiness = {
            "rounds": lambda: None if self.started.is_set() else "not started",
            "certificate": lambda: renewal.trouble() if renewal is not None else None,
        }
        monitoring = MonitoringServer(config.monitoring_host, config.monitoring_port, self.metrics, readiness)
        port = await monitoring.start()
        stack.push_async_callback(monitoring.stop)
        self.metrics_address = f"{config.monitoring_host}:{port}"

    async def _conclude(
        self,
        finish: Finish,
        supervision: Supervision,
        transfers: Transfers | None,
        checkpoints: Checkpoints,
    ) -> None:
        """Tell the sites, hand the results over, and tell the director last: once it knows, it forgets this process."""
        farewell = asyncio.create_task(self._part(finish), name="aggregator/farewell")
        try:
            folder = self.config.folder / "artifacts"
            exported = await self._on_disk(self._export, folder, finish, checkpoints)
            if transfers is not None:

                def tell(text: str) -> None:
                    supervision.event(director_pb2.Event(kind="audit", text=text))

                for path, round_number in exported:
                    await transfers.upload(path.name, path, round_number, tell=tell)
            await farewell
            await supervision.ended(finish, self._ledger.standpoint.end_sequence)
        finally:
            farewell.cancel()

    def _export(self, folder: Path, finish: Finish, checkpoints: Checkpoints) -> list[tuple[Path, int]]:
        """Write what people download: whole models, and the history."""
        folder.mkdir(exist_ok=True)
        committed = self._ledger.standpoint.round - 1
        best_round = self._ledger.standpoint.score.best_round
        last, best, history = folder / "last.safetensors", folder / "best.safetensors", folder / "history.json"
        exported = [(history, 0)]
        write_history(history, self.config.experiment, finish, self._ledger.records())
        if committed:
            checkpoints.export("model", last)
            exported.append((last, committed))
        if best_round:
            checkpoints.export("best", best)
            exported.append((best, best_round))
        return exported

    async def _part(self, finish: Finish) -> None:
        """Tell every site that it is over."""
        reply = aggregator_pb2.ParticipateReply(
            finish=aggregator_pb2.Finish(outcome=finish.outcome, reason=finish.reason, epoch=self.config.epoch)
        )
        await self.driver.sessions.finish(reply, self.config.stop_grace_s)

    async def _on_disk(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)


async def _run(config: AggregatorConfig) -> int:
    """Run to the end, leave the exit record, and return the exit code."""
    shutdown = Shutdown()
    shutdown.install()
    clock = SystemClock()
    hurry = asyncio.create_task(_stop_at_once(shutdown, config, clock), name="aggregator/second signal")
    code = 0
    try:
        record = await Aggregator(config, clock=clock, shutdown=shutdown).run()
    except ConflictError as error:
        record = ExitRecord(outcome="superseded", error_class="ConflictError", reason=str(error), at=clock.now())
    except Exception as error:
        logs.get_logger(__name__).error("aggregator failed", exc_info=error)
        reason = str(error) if isinstance(error, FederationError) else repr(error)
        record = ExitRecord(outcome="fault", error_class=type(error).__name__, reason=reason, at=clock.now())
        code = 2 if isinstance(error, ConfigurationError) else 1
    finally:
        hurry.cancel()
    await asyncio.to_thread(write_exit_record, config.folder, record)
    return code


async def _stop_at_once(shutdown: Shutdown, config: AggregatorConfig, clock: Clock) -> None:
    """The second signal: not even threads are waited for. The journal is good at any moment."""
    await shutdown.stop_now.wait()
    write_exit_record(config.folder, ExitRecord(outcome="drained", reason="stopped at once", at=clock.now()))
    os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    """Run an aggregator from the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m federation.aggregator", description="Run one experiment's rounds.")
    parser.add_argument("--config", required=True, type=Path, help="JSON file the director wrote")
    options = parser.parse_args(arguments)
    try:
        config = AggregatorConfig.read(options.config)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(config.log_level, role="aggregator", experiment=config.experiment)
    return asyncio.run(_run(config))
