"""A machine with an envoy process on it, and how a test brings its collaborator to the aggregator."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from federation.runtime import children
from federation.v1 import aggregator_pb2, director_pb2

if TYPE_CHECKING:
    from pathlib import Path

ANSWER = director_pb2.AssignmentAnswer
EXPERIMENT = "trial-00000001"


@dataclass
class EnvoyHost:
    """A machine with an envoy on it."""

    folder: Path
    started: list[children.Child] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "envoy.toml"

    @property
    def log(self) -> str:
        return (self.folder / "envoy.log").read_text()

    @property
    def experiment(self) -> Path:
        return self.folder / "state" / "experiments" / EXPERIMENT

    async def start(self, **environment: str) -> children.Child:
        child = await children.spawn(
            children.ChildSpec(
                name="envoy",
                argv=[sys.executable, "-c", "from envoy.command import main; main()", "--config", str(self.config)],
                env={"PATH": os.environ["PATH"], **environment},
                cwd=self.folder,
                log=self.folder / "envoy.log",
                folder=self.folder / "process",
            )
        )
        self.started.append(child)
        return child

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the owner's command line."""
        code = "from envoy.command import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            check=False,
        )

    async def owner(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self.command, *arguments)

    def pid(self, *parts: str) -> int:
        text = self.experiment.joinpath(*parts, "process.json").read_text()
        return children.ProcessIdentity.from_json(text).pid

    async def get(self, path: str) -> Any:
        port = int((self.folder / "state" / "monitoring.port").read_text())
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}{path}") as reply:
            text = await reply.text()
            return json.loads(text) if "json" in reply.content_type else text


@dataclass(kw_only=True)
class Attending:
    """An envoy that attends, and whose collaborator takes part.

    Attributes:
        trial: the experiment.
        aggregator: the collaborator's, scripted.
        host: where the envoy runs.
        session: the director's end of the envoy's session.
        site: the aggregator's end of the collaborator's session.
        child: the envoy.
    """

    trial: Any
    aggregator: Any
    host: EnvoyHost
    session: Any
    site: Any
    child: children.Child


async def accepted(trial: Any, aggregator: Any, director: Any, host: EnvoyHost) -> tuple[Any, Any, children.Child]:
    """Bring an envoy up and its collaborator to the aggregator."""
    director.bundle = trial.archive.read_bytes()
    child = await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment(aggregator.address))
    answer = await session.hear("answer")
    assert answer.answer == ANSWER.ANSWER_ACCEPTED, answer.reason
    site = await aggregator.next_session()
    await site.hear("ready")
    return session, site, child


def finish(site: Any) -> None:
    site.send(finish=aggregator_pb2.Finish(outcome="completed", reason="", epoch=site.epoch))
