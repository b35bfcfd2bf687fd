"""Everything one aggregator needs, made in a folder: certificates, spec, initial model, configuration.

With `Stage` a test, or a benchmark, has a real aggregator with real certificates and no director, in this process or in
one of its own, and sites to meet it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from federation.aggregator.config import AggregatorConfig, FixedSite, TlsPaths
from federation.aggregator.process import INITIAL_FILE, SPEC_FILE, Aggregator
from federation.algorithms.registry import load_algorithm
from federation.names import Digest, Epoch, ExperimentId, FederationName, Identity, Role, SiteName
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.plan import ExperimentSpec, Plan, tensor_rows
from federation.runtime.records import read_exit_record
from federation.storage.safetensors_files import write_model
from federation.tensors import DType, TensorSchema, TensorSpec
from federation.testing.honest_sites import HonestSite
from federation.testing.scripted_sites import Meeting, ScriptedSite
from federation.transport.credentials import TlsFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from federation.runtime.clock import Clock
    from federation.runtime.records import ExitRecord
    from federation.runtime.shutdown import Shutdown

FEDERATION = FederationName("test")
EXPERIMENT = ExperimentId("experiment-00000001")
_Site = TypeVar("_Site", bound=ScriptedSite)


def flat_schema(elements: int, dtype: DType = DType.FLOAT32) -> TensorSchema:
    """Return the schema of a model with one parameter tensor."""
    return TensorSchema.of([TensorSpec(name="weight", dtype=dtype, shape=(elements,))])


class Stage:
    """One experiment's stage.

    Args:
        folder: where everything goes.
        plan: what the experiment does.
        sites: names of its sites.
        schema: of its model; by default 10 numbers of float32.
        optimizer: schema of its aggregated optimizer state.
        value: what every element of the initial model is.

    Attributes:
        authority: issues every certificate.
        spec: the experiment.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        sites: Sequence[str],
        *,
        schema: TensorSchema | None = None,
        optimizer: TensorSchema | None = None,
        value: float = 0.0,
    ) -> None:
        schema = schema or flat_schema(10)
        uplink, downlink = load_algorithm(plan).payload_rows(plan)
        self.spec = ExperimentSpec(
            name="experiment",
            shard="numbers",
            plan=plan,
            tensors=tensor_rows(schema),
            optimizer_tensors=tensor_rows(optimizer) if optimizer else (),
            metrics=("loss",),
            uplink=uplink,
            downlink=downlink,
        )
        self.sites = [SiteName(site) for site in sites]
        self._folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.authority = CertificateAuthority.create(FEDERATION, folder / "ca", now=time.time())
        self.tls_of(Role.AGGREGATOR, EXPERIMENT)
        for site in self.sites:
            self.tls_of(Role.ENVOY, site)
        document = self.spec.canonical_json()
        (self.work / SPEC_FILE).write_bytes(document)
        self.spec_digest = Digest(hashlib.sha256(document).digest())
        full = {spec.name: np.full(spec.shape, value, dtype=spec.dtype.numpy) for spec in schema}
        write_model(self.work / INITIAL_FILE, schema, full)

    def tls_of(self, role: Role, name: str, *, lifetime_s: float = 3600.0) -> TlsFiles:
        """Return the certificate files of an identity, issued at the first call."""
        folder = self._folder / "identities" / role.value / name
        if not folder.exists():
            identity = Identity(federation=FEDERATION, role=role, name=name)
            issue_identity(self.authority, identity, folder, now=time.time(), lifetime_s=lifetime_s)
        return TlsFiles.in_folder(folder)

    def config(self, *, epoch: int = 1, **changes: Any) -> AggregatorConfig:
        """Return the configuration of an aggregator without a director."""
        tls = self.tls_of(Role.AGGREGATOR, EXPERIMENT)
        values: dict[str, Any] = {
            "federation": FEDERATION,
            "experiment": EXPERIMENT,
            "epoch": Epoch(epoch),
            "folder": self.work,
            "tls": TlsPaths(authority=tls.authority, certificate=tls.certificate, key=tls.key),
            "director_address": None,
            "roster": tuple(FixedSite(site=site, train_examples=1000, validation_examples=1000) for site in self.sites),
            "site_grace_s": 0.2,
            "stop_grace_s": 2.0,
        }
        return AggregatorConfig(**{**values, **changes})

    def meeting(self, address: str) -> Meeting:
        """Return where sites meet the aggregator at an address."""
        return Meeting(
            address=address,
            federation=FEDERATION,
            experiment=EXPERIMENT,
            spec=self.spec,
            spec_digest=self.spec_digest,
        )

    def site(self, name: str, address: str, kind: type[_Site] = HonestSite, **options: Any) -> _Site:  # type: ignore[assignment]
        """Return a site with its certificate."""
        tls = self.tls_of(Role.ENVOY, name)
        return kind(SiteName(name), self.meeting(address), tls, **options)

    @asynccontextmanager
    async def aggregator(
        self, *, clock: Clock | None = None, shutdown: Shutdown | None = None, **changes: Any
    ) -> AsyncIterator[RunningAggregator]:
        """Run an aggregator in this process; leaving the context ends it if it has not ended."""
        aggregator = Aggregator(self.config(**changes), clock=clock, shutdown=shutdown)
        task = asyncio.create_task(aggregator.run(), name="test aggregator")
        started = asyncio.create_task(aggregator.started.wait(), name="test start")
        try:
            await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            yield RunningAggregator(aggregator, task)
        finally:
            for pending in (task, started):
                pending.cancel()
            await asyncio.wait({task, started})

    @asynccontextmanager
    async def process(self, epoch: int = 1, **changes: Any) -> AsyncIterator[AggregatorProcess]:
        """Run an aggregator in a process of its own; it is killed on the way out.

        Raises:
            RuntimeError: it ended before it was ready.
        """
        config = self.work / "aggregator.json"
        config.write_text(self.config(epoch=epoch, **changes).model_dump_json())
        place = self.work / f"notify-{epoch}"
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.setblocking(False)
            listener.bind(str(place))
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "federation.aggregator", "--config", str(config),
                env={**os.environ, "NOTIFY_SOCKET": str(place)}, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            ready = asyncio.create_task(loop.sock_recv(listener, 65536))
            ended = asyncio.create_task(child.wait())
            try:
                await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not ready.done():
                    raise RuntimeError(f"the aggregator ended at once: {read_exit_record(self.work)}")
                facts = dict(line.split("=", 1) for line in ready.result().decode().splitlines())
                yield AggregatorProcess(child, facts["X_ADDRESS"])
            finally:
                ready.cancel()
                with suppress(ProcessLookupError):
                    child.kill()
                await asyncio.wait({ready, ended})


class AggregatorProcess:
    """An aggregator process.

    Attributes:
        child: itself.
        address: where sites dial.
    """

    def __init__(self, child: asyncio.subprocess.Process, address: str) -> None:
        self.child = child
        self.address = address

    def kill(self) -> None:
        """End it as a power cut would."""
        with suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGKILL)

    async def ended(self) -> int:
        """Return its exit status."""
        return await self.child.wait()


class RunningAggregator:
    """An aggregator that runs in this process.

    Attributes:
        aggregator: itself.
        address: where sites dial.
    """

    def __init__(self, aggregator: Aggregator, task: asyncio.Task[ExitRecord]) -> None:
        self.aggregator = aggregator
        self.address = aggregator.address
        self._task = task

    async def ended(self) -> ExitRecord:
        """Return how it ended."""
        return await asyncio.shield(self._task)
