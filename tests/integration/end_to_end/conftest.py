"""A federation of real processes over real mutual TLS, an experiment that obeys the test, and eyes on all processes.

Waits are on events of the director, on named pipes (`Gate`) and on pidfds; nothing sleeps.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import select
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.client.local import LocalFederation, LocalSite
from federation.data.local import LocalData
from federation.names import SiteName
from federation.storage.checkpoints import read_model
from federation.training.context import RoundContext
from federation.training.importing import load_experiment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.client.views import Event, ExperimentDetails
    from federation.plan import Plan

HERE = Path(__file__).parent
EXAMPLES = {
    "north": (24, 1),
    "south": (40, 2),
    "west": (16, 3),
    "east": (32, 4),
    "centre": (28, 5),
}
"""Training examples and seed of each site."""
_PATIENCE_S = 60.0


def site(name: str, gates: Path, *kinds: str, **settings: Any) -> LocalSite:
    """Return a site that offers its rows under each of `kinds`.

    ``classes`` gives classes instead, and ``poisoned`` gives them the wrong way round and calls them ``classes`` too.
    """
    examples, seed = EXAMPLES[name]
    shards = [_shard(kind, gates, {"examples": examples, "seed": seed}) for kind in kinds or ("rows",)]
    trainer = {"python_path": [HERE / "site"], **settings.pop("trainer", {})}
    return LocalSite(name=name, shards=shards, settings={"trainer": trainer, **settings})


def _shard(kind: str, gates: Path, options: dict[str, Any]) -> dict[str, Any]:
    if kind == "poisoned":
        factory = "federation.testing.poisoned:PoisonedShard"
        options = {"attack": "label_flip", "base": "rows:Classes", "options": options, "classes": 2}
        return {"name": "classes", "kind": "classes", "factory": factory, "options": options, "paths": [gates]}
    factory = "rows:Classes" if kind == "classes" else "rows:Rows"
    return {"name": kind, "kind": kind, "factory": factory, "options": options, "paths": [gates]}


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
            ready, _, _ = select.select([self._said], [], [], _PATIENCE_S)
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


def processes_of(folder: Path) -> list[int]:
    """Return every process whose arguments or environment name the folder, zombies not counted."""
    mark, found = str(folder).encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


class Eyes:
    """Processes that are waited for by pidfd."""

    def __init__(self, pids: list[int]) -> None:
        self._pidfds = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                self._pidfds[pid] = os.pidfd_open(pid)

    def wait(self) -> None:
        """Wait until all have ended."""
        for pid, pidfd in self._pidfds.items():
            ready, _, _ = select.select([pidfd], [], [], _PATIENCE_S)
            os.close(pidfd)
            assert ready, f"process {pid} still runs: " + Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        self._pidfds = {}


def kill(*pids: int) -> None:
    """Kill for good, and wait until they are gone."""
    eyes = Eyes(list(pids))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eyes.wait()


@pytest.fixture(scope="session", name="eyes")
def _eyes() -> type[Eyes]:
    return Eyes


@pytest.fixture(scope="session", name="kill")
def _kill() -> Callable[..., None]:
    return kill


@pytest.fixture(scope="session", name="processes_of")
def _processes_of() -> Callable[[Path], list[int]]:
    return processes_of


@pytest.fixture(scope="session")
def start() -> Callable[..., contextlib.AbstractContextManager[Trial]]:
    """Return what starts a federation in a folder and ends it on the way out; kinds of shards by site."""

    @contextlib.contextmanager
    def begin(folder: Path, sites: dict[str, tuple[str, ...]] | None = None, **more: Any) -> Iterator[Trial]:
        gates = folder / "gates"
        gates.mkdir(parents=True)
        settings = more.pop("settings", {})
        members = [
            site(name, gates, *kinds, **settings.get(name, {}))
            for name, kinds in (sites or {"north": (), "south": ()}).items()
        ]
        with LocalFederation(folder / "federation", sites=members, **more) as local:
            trial = Trial(local, gates)
            try:
                yield trial
            finally:
                trial.close()

    return begin


class Reckoning:
    """Plain FedAvg over the same task and shards, in this process: what a federation of any kind must arrive at.

    Sums run in float64 over sites in name order; a half-precision model keeps a float32 master, as the server does;
    integers are combined by maximum.
    """

    def __init__(self, source: Path, sites: tuple[str, ...], *, shard: str = "Rows") -> None:
        settings = json.loads((source / "settings.json").read_text())
        copy = source.with_name(source.name + "-reckoned")
        shutil.copytree(source, copy, dirs_exist_ok=True)
        (copy / "settings.json").write_text(json.dumps({**settings, "gate": None, "holds": {}}))
        factory = getattr(load_module(HERE / "site" / "rows.py"), shard)
        self.data = {name: LocalData(factory(*EXAMPLES[name])) for name in sorted(sites)}
        self.experiment = load_experiment(copy)
        self.plan: Plan = self.experiment.plan
        self.spec, self.model = self.experiment.build()
        self._adapter = self.experiment.make_model(self.plan.seed)
        own = [spec.name for spec in self.spec.schema_.local]
        self.local = {name: {key: self.model[key].copy() for key in own} for name in sites}
        self.states: dict[str, dict[str, Any]] = {name: {} for name in sites}
        self._master = {
            name: value.astype(np.float32) if value.dtype.itemsize == 2 else value for name, value in self.model.items()
        }

    def run(self, rounds: int | None = None) -> dict[str, Any]:
        """Return the model after the rounds."""
        for number in range(1, (rounds or self.plan.rounds) + 1):
            self._round(number)
        return self.model

    def _round(self, number: int) -> None:
        sums: dict[str, Any] = {}
        moments: dict[str, Any] = {}
        total = 0
        for name, data in self.data.items():
            trained, context = self._train(number, name)
            weight = data.examples_used
            total += weight
            for spec in self.spec.schema_.federated:
                key, value = spec.name, trained[spec.name]
                if spec.dtype.is_float:
                    change = (value - self.model[key]).astype(np.float64)
                    sums[key] = sums.get(key, 0.0) + weight * change
                else:
                    sums[key] = value if key not in sums else np.maximum(sums[key], value)
            for key, value in context.optimizer_state.items():
                moments[key] = moments.get(key, 0.0) + weight * value.astype(np.float64)
        for key, value in sums.items():
            master = self._master[key]
            self._master[key] = (master + value / total).astype(master.dtype) if value.dtype == np.float64 else value
            self.model[key] = self._master[key].astype(self.model[key].dtype)
        if self.plan.optimizer_state == "aggregate":
            mean = {key: (value / total).astype(np.float32) for key, value in moments.items()}
            self.states = {name: mean for name in self.states}

    def _train(self, number: int, name: str) -> tuple[dict[str, Any], RoundContext]:
        data, arrays = self.data[name], self._adapter.arrays()
        data.start_count()
        for key, value in {**self.model, **self.local[name]}.items():
            arrays[key][...] = value
        context = RoundContext(
            number=number,
            site=SiteName(name),
            seed=self.plan.seed,
            epochs=self.plan.epochs,
            steps=self.plan.local_steps,
            learning_rate=self.plan.learning_rate,
            threads=1,
            optimizer_state={key: value.copy() for key, value in self.states[name].items()},
        )
        self.experiment.task.train(self._adapter.model, data, context)
        trained = {key: value.copy() for key, value in self._adapter.arrays().items()}
        self.local[name] = {key: trained[key] for key in self.local[name]}
        if self.plan.optimizer_state == "keep":
            self.states[name] = dict(context.optimizer_state)
        return trained, context


def load_module(path: Path) -> Any:
    """Import a file that is no package's."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rows_of() -> Callable[[str], Any]:
    """Return what gives the rows of a site as its trainer loads them."""
    return lambda name: load_module(HERE / "site" / "rows.py").Rows(*EXAMPLES[name])


@pytest.fixture(scope="session")
def reckon() -> type[Reckoning]:
    return Reckoning
