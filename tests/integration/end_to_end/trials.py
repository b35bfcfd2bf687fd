"""A federation of processes as a test leads it. Waits are on its events and on named pipes (`Gate`); nothing sleeps."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.storage.safetensors_files import read_model

from .processes import PATIENCE_S, processes_of
from .sites import HERE

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.client.local import LocalFederation
    from federation.client.views import Event, ExperimentDetails


class Gate:
    """The pipes of one experiment: what its trainers said, and where they wait."""

    def __init__(self, folder: Path, sites: tuple[str, ...]) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.heard: list[str] = []
        for name in ("said", *sites):
            os.mkfifo(folder / name)
        # Open for both, so that the pipe has a reader and a writer whoever comes and goes.
        self._said = os.open(folder / "said", os.O_RDWR | os.O_NONBLOCK)
        self._open: dict[str, int] = {}

    def listen(self, line: str, times: int = 1) -> None:
        """Wait until the line was said so many times."""
        while self.heard.count(line) < times:
            ready, _, _ = select.select([self._said], [], [], PATIENCE_S)
            assert ready, f"nobody said {line!r}; heard {self.heard}"
            self._take()

    def count(self, line: str) -> int:
        """How often the line was said so far."""
        self._take()
        return self.heard.count(line)

    def open(self, *sites: str) -> None:
        """Let those who wait there pass, now and later."""
        for name in sites:
            self._open[name] = os.open(self.folder / name, os.O_RDWR)

    def close(self) -> None:
        for descriptor in (self._said, *self._open.values()):
            os.close(descriptor)
        self._open.clear()

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.heard += os.read(self._said, 65536).decode().splitlines()


@dataclass(slots=True, kw_only=True)
class Run:
    """An experiment that was submitted."""

    trial: Trial
    id: str
    source: Path
    gate: Gate
    cursor: int = 0
    events: list[Event] = field(default_factory=list)

    def until(self, accept: Callable[[Event], object]) -> Event:
        """Wait for an event, from the last one that was waited for on."""
        for event in self.trial.client.watch(self.id, cursor=self.cursor):
            self.cursor = event.sequence
            self.events.append(event)
            if accept(event):
                return event
        raise AssertionError("it ended before: " + self.story)

    def until_round(self, number: int) -> None:
        self.until(lambda event: event.round is not None and event.round.round == number)

    def until_admitted(self, number: int, count: int) -> None:
        """Wait until so many updates of the round are in."""
        self.until(
            lambda event: (
                event.progress is not None and event.progress.round == number and event.progress.sites_done >= count
            )
        )

    def until_state(self, state: str) -> Event:
        return self.until(lambda event: event.transition is not None and event.transition.state == state)

    def end(self) -> ExperimentDetails:
        """Wait for its end, whatever it is."""
        for event in self.trial.client.watch(self.id, cursor=self.cursor):
            self.cursor = event.sequence
            self.events.append(event)
        return self.details

    def complete(self) -> ExperimentDetails:
        """Wait for its end, which must be a good one with every round committed exactly once."""
        details = self.end()
        assert details.summary.state == "completed", self.story
        numbers = [entry.round for entry in details.rounds]
        assert numbers == list(range(1, details.summary.rounds_done + 1)), self.story
        committed = [event.round.round for event in self.events if event.round is not None]
        assert len(committed) == len(set(committed)), self.story
        return details

    @property
    def details(self) -> ExperimentDetails:
        return self.trial.client.show(self.id)

    @property
    def story(self) -> str:
        """Everything that happened, for a person who reads why a test failed."""
        summary = self.details.summary
        lines = [f"{event.kind} {event.site}: {event.text}" for event in self.trial.client.watch(self.id)]
        return "\n".join([f"{summary.state}: {summary.reason}", *lines])

    def model(self, name: str = "last.safetensors") -> dict[str, Any]:
        """Download a model and return its arrays."""
        target = self.trial.folder / "downloads" / self.id / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self.trial.client.download(self.id, name, target)
        return dict(read_model(target)[1])

    def processes(self, what: str) -> list[int]:
        """Return this experiment's processes: ``aggregator``, ``collaborator`` or ``trainer``, by site name."""
        return self.trial.processes(what, self.id)


class Trial:
    """A running federation and its user."""

    def __init__(self, local: LocalFederation, gates: Path) -> None:
        self.local = local
        self.folder = local.folder
        self.client = local.connect()
        self._gates = gates
        self._numbers = itertools.count(1)
        self._opened: list[Gate] = []

    def submit(self, source: Path | None = None, **settings: Any) -> Run:
        """Submit the experiment with these settings; see ``experiment/experiment.py``."""
        folder, gate = self.prepare(source, **settings)
        return Run(trial=self, id=self.client.submit(folder), source=folder, gate=gate)

    def prepare(self, source: Path | None = None, **settings: Any) -> tuple[Path, Gate]:
        """Return a folder of the experiment with these settings, and its gate."""
        number = next(self._numbers)
        gate = Gate(self._gates / str(number), tuple(self.local.sites))
        self._opened.append(gate)
        folder = self.folder / "sources" / str(number)
        shutil.copytree(source or HERE / "experiment", folder, ignore=shutil.ignore_patterns("__pycache__"))
        plan = {"rounds": 2, "sites": 2, "minimum_sites": 2, "learning_rate": 0.05, **settings.pop("plan", {})}
        settings = {"plan": plan, "gate": str(gate.folder), **settings}
        (folder / "settings.json").write_text(json.dumps(settings))
        return folder, gate

    def processes(self, what: str, experiment: str = "") -> list[int]:
        """Return process ids of this federation, by site name where there are several."""
        found = []
        for pid in processes_of(self.folder):
            with contextlib.suppress(OSError):
                parts = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                # Not the sandbox around a trainer, whose arguments name it too.
                if parts[0].endswith("bwrap") or f"federation.{what}" not in parts:
                    continue
                said = "\0".join(parts) + Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                if experiment in said:
                    found.append((said.partition("/sites/")[2], pid))
        return [pid for _, pid in sorted(found)]

    def daemon(self, name: str) -> int:
        return self.local.daemons[name].process.pid

    def close(self) -> None:
        self.client.close()
        for gate in self._opened:
            gate.close()
