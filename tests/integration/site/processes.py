"""Collaborators run by hand, without an envoy, and how one waits for processes."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation import bundle
from federation.collaborator.config import CollaboratorConfig, ShardSettings, TrainerOptions
from federation.names import (
    Role,
    SiteName,
    aggregator_server_name,
)
from federation.runtime import children

from .trials import EXPERIMENT, FEDERATION, SITE, WAIT_S

if TYPE_CHECKING:
    from .trials import Pki, Trial


@dataclass
class Site:
    """What a test needs to run collaborators by hand, without an envoy."""

    folder: Path
    pki: Pki
    trial: Trial
    shard_code: Path
    sandbox: str = "none"
    max_deaths: int = 6
    name: SiteName = SITE
    options: dict[str, Any] = field(default_factory=dict)
    started: list[children.Child] = field(default_factory=list)

    def config(self, address: str) -> CollaboratorConfig:
        tls = self.pki.issue(Role.ENVOY, self.name)
        bundle_folder = self.folder / "bundle"
        if not bundle_folder.exists():
            self.folder.mkdir(exist_ok=True)
            bundle.unpack(self.trial.archive, self.trial.manifest, bundle_folder)
            (self.folder / "spec.json").write_bytes(self.trial.manifest.spec_json)
        values: dict[str, Any] = {
            "federation": FEDERATION,
            "site": self.name,
            "experiment": EXPERIMENT,
            "authority": tls.authority,
            "certificate": tls.certificate,
            "key": tls.key,
            "aggregator_address": address,
            "aggregator_server_name": aggregator_server_name(FEDERATION, EXPERIMENT),
            "spec_file": self.folder / "spec.json",
            "initial_model": self.trial.manifest.model_payload_digest.hex(),
            "initial_base": self.trial.manifest.base_payload_digest.hex(),
            "bundle_folder": bundle_folder,
            "folder": self.folder / "collaborator",
            "workspace": self.folder / "workspace",
            "exchange": self.folder / "exchange",
            "trainer_log": self.folder / "trainer.log",
            "shards": [
                ShardSettings(name="ward", kind="numbers", factory="ward_shards:Numbers", options={"examples": 8})
            ],
            "trainer": TrainerOptions(
                interpreter=Path(sys.executable),
                python_path=(self.shard_code,),
                sandbox=self.sandbox,
                max_deaths=self.max_deaths,
            ),
            "hidden": [tls.key],
            "envoy_socket": self.folder / "envoy.sock",
            "orphan_s": 60.0,
        }
        return CollaboratorConfig(**{**values, **self.options})

    async def start(self, address: str) -> children.Child:
        config = self.config(address)
        path = self.folder / "collaborator.json"
        path.write_text(config.model_dump_json())
        child = await children.spawn(
            children.ChildSpec(
                name="collaborator",
                argv=[sys.executable, "-P", "-m", "federation.collaborator", "--config", str(path)],
                env={"PATH": os.environ["PATH"]},
                cwd=self.folder,
                log=self.folder / "collaborator.log",
                folder=config.folder,
            )
        )
        self.started.append(child)
        return child

    @property
    def log(self) -> str:
        return (self.folder / "collaborator.log").read_text()

    @property
    def trainer_pid(self) -> int:
        text = (self.folder / "collaborator" / "trainer" / "process.json").read_text()
        return children.ProcessIdentity.from_json(text).pid


async def ended(child: children.Child) -> children.ExitStatus:
    """How a child ended; a test never waits longer than for anything else."""
    return await asyncio.wait_for(child.wait(), WAIT_S)


async def gone(pid: int) -> None:
    """Return once a process is gone: an event of its pidfd, not a poll."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await readable(descriptor)
    finally:
        os.close(descriptor)


async def readable(descriptor: int) -> None:
    """Return once a descriptor can be read from."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await asyncio.wait_for(done.wait(), WAIT_S)
    finally:
        loop.remove_reader(descriptor)
