"""A trainer as a real child process on a socketpair, and experiment folders for it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.runtime.framing import BlockingFrames
from federation.tensors import pack, unpack
from federation.training.importing import load_experiment
from federation.v1 import trainer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from google.protobuf.message import Message

NUMPY = """
import sys, os
import numpy as np
from federation import Experiment, Plan

class Task:
    def train(self, model, data, round):
        print("training round", round.number, "at", round.site)
        model["w"] += data.train[0].mean(axis=0)
        model["head"] += 1
        if round.number == 13:
            raise KeyError("patient 7")
        if round.number == 14:
            sys.exit(3)
        return {"loss": float("nan") if round.number == 15 else 0.5}

    def evaluate(self, model, data):
        return {"loss": float(model["w"].sum()), "head": float(model["head"].sum()),
                "torch": float("torch" in sys.modules)}

experiment = Experiment(
    name="trial", task=Task(), shard="patients", metrics=("loss", "head", "torch"), sample_shape=(3,),
    model=lambda: {"w": np.zeros(3), "head": np.zeros(1), "n": np.zeros((), np.int64)},
    plan=Plan(local=("head",), rounds=20),
)
"""

TORCH = """
from torch import nn
from federation import Experiment, Plan, SupervisedTask

experiment = Experiment(
    name="trial", shard="patients", task=SupervisedTask(batch_size=4, metrics=("accuracy",)), sample_shape=(3,),
    model=lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    plan=Plan(rounds=3, learning_rate=0.1, local_epochs=3),
)
"""


class Trainer:
    """One child, and the owner's end of its socket."""

    def __init__(self, log: Path) -> None:
        self.log = log
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "federation.trainer", "--socket-fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        ours.settimeout(60)
        self.socket = ours
        self.frames = BlockingFrames(ours)
        self._orders = 0

    def ask(self, **message: Message) -> pb.TrainerAnswer:
        self._orders += 1
        self.frames.send(pb.TrainerOrder(order=self._orders, **message))
        answer = self.frames.receive(pb.TrainerAnswer)
        assert answer is not None, self.log.read_text()
        assert answer.order == self._orders
        return answer

    def close(self) -> int:
        self.socket.close()
        return self.process.wait(timeout=60)


@dataclass
class Case:
    """An experiment at one site: the folder, what a collaborator would hold, and the orders it would give."""

    folder: Path
    factory: str = "federation.data.tables:NpzShard"
    options: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec, self.arrays = load_experiment(self.folder / "bundle").build()
        self.schema = self.spec.schema_
        (self.folder / "workspace").mkdir()
        (self.folder / "base").write_bytes(pack(self.schema.local, self.arrays))
        rng = np.random.default_rng(0)
        samples = rng.normal(size=(40, 3)).astype(np.float32)
        targets = (samples.sum(axis=1) > 0).astype(np.int64)
        np.savez(self.folder / "patients.npz", x=samples, y=targets)
        self.options = self.options or {"path": str(self.folder / "patients.npz")}
        self.write_model(self.arrays)

    @property
    def shard(self) -> pb.ShardConfig:
        return pb.ShardConfig(
            name="patients", kind="patients", factory=self.factory, options_json=json.dumps(self.options)
        )

    @property
    def prepare(self) -> pb.PrepareTrainer:
        return pb.PrepareTrainer(
            experiment="trial-aaaaaaaa",
            site="north",
            bundle_folder=str(self.folder / "bundle"),
            workspace=str(self.folder / "workspace"),
            shards=[self.shard],
            base_file=str(self.folder / "base") if self.schema.local else "",
            spec_json=self.spec.canonical_json().decode(),
        )

    def write_model(self, arrays: dict[str, np.ndarray]) -> None:
        (self.folder / "model").write_bytes(pack(self.schema.federated, arrays))

    def train(self, number: int, attempt: int = 1) -> pb.RunTraining:
        return pb.RunTraining(
            round=number,
            attempt=attempt,
            model_file=str(self.folder / "model"),
            delta_file=str(self.folder / "delta"),
            buffers_file=str(self.folder / "buffers") if self.schema.buffers else "",
        )

    def evaluate(self, number: int) -> pb.RunEvaluation:
        return pb.RunEvaluation(round=number, model_file=str(self.folder / "model"))

    def delta(self) -> dict[str, np.ndarray]:
        return unpack(self.schema.parameters, (self.folder / "delta").read_bytes())


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., Case]:
    def make(code: str, **options: object) -> Case:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "experiment.py").write_text(code)
        return Case(tmp_path, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def numpy_case(case: Callable[..., Case]) -> Case:
    return case(NUMPY)


@pytest.fixture
def torch_case(case: Callable[..., Case]) -> Case:
    return case(TORCH)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Trainer]]:
    """A function that starts a trainer; those still running at the end are killed."""
    trainers: list[Trainer] = []

    def make() -> Trainer:
        trainers.append(Trainer(tmp_path / "trainer.log"))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.socket.close()
        trainer.process.kill()
        trainer.process.wait()
