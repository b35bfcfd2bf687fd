"""The real trainer behind its real handle, confined and not: what it does, and what it cannot reach."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.confinement.handle import TrainerHandle, TrainerSettings
from federation.confinement.sandbox import SandboxMode
from federation.errors import TaskError
from federation.tensors import pack, unpack
from federation.training.importing import load_experiment
from federation.v1 import trainer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

EXPERIMENT = """
import socket
from pathlib import Path
import numpy as np
from federation import Experiment, Plan

class Task:
    def train(self, model, data, round):
        model["w"] += data.train[0].mean(axis=0)
        if round.number == 7:
            print(data.train[0])
            print(Path({key!r}).read_text())
        if round.number == 8:
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        return {{"loss": 1.0}}

    def evaluate(self, model, data):
        return {{"loss": float(np.abs(model["w"]).sum())}}

experiment = Experiment(
    name="trial", task=Task(), shard="patients", plan=Plan(rounds=9), model=lambda: {{"w": np.zeros(3)}}
)
"""


class Site:
    """Folders of one site, as an envoy and a collaborator keep them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("pki", "data", "state/bundle", "state/exchange", "state/workspace"):
            (root / name).mkdir(parents=True)
        (root / "pki/key.pem").write_text("the site's private key")
        rows = np.arange(30, dtype=np.float32).reshape(10, 3)
        np.savez(root / "data/patients.npz", x=rows, y=np.zeros(10))
        (root / "state/bundle/experiment.py").write_text(EXPERIMENT.format(key=str(root / "pki/key.pem")))
        self.spec, self.arrays = load_experiment(root / "state/bundle").build()
        self.exchange = root / "state/exchange"
        (self.exchange / "model.bin").write_bytes(pack(self.spec.schema_.federated, self.arrays))
        options = json.dumps({"path": str(root / "data/patients.npz")})
        self.shard = pb.ShardConfig(name="patients", factory="federation.data.tables:NpzShard", options_json=options)

    def settings(self, mode: SandboxMode) -> TrainerSettings:
        state = self.root / "state"
        return TrainerSettings(
            name="trainer of test",
            folder=state / "trainer",
            log=state / "trainer.log",
            workspace=state / "workspace",
            exchange=self.exchange,
            bundle=state / "bundle",
            readable=(self.root / "data",),
            hidden=(self.root / "pki", state),
            sandbox=mode,
        )

    @property
    def prepare(self) -> pb.PrepareTrainer:
        return pb.PrepareTrainer(
            experiment="trial-aaaaaaaa",
            site="north",
            bundle_folder=str(self.root / "state/bundle"),
            workspace=str(self.root / "state/workspace"),
            shards=[self.shard],
            spec_json=self.spec.canonical_json().decode(),
        )

    def train(self, number: int) -> pb.RunTraining:
        model, delta = str(self.exchange / "model.bin"), str(self.exchange / "delta.bin")
        return pb.RunTraining(round=number, attempt=1, model_file=model, delta_file=delta)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(
    params=[
        pytest.param(SandboxMode.REQUIRED, id="sandboxed", marks=pytest.mark.needs_bubblewrap),
        pytest.param(SandboxMode.NONE, id="not sandboxed"),
    ]
)
async def trainer(request: pytest.FixtureRequest, site: Site) -> AsyncIterator[TrainerHandle]:
    handle = TrainerHandle(site.settings(request.param))
    await handle.start()
    yield handle
    handle.kill()
    await handle.exited()


async def test_the_real_trainer_serves_its_handle_from_start_to_end(site: Site, trainer: TrainerHandle) -> None:
    described = (await trainer.describe([site.shard], timeout_s=60)).shards[0]
    assert (described.error_class, described.train_examples, described.validation_examples) == ("", 8, 2)
    assert (await trainer.prepare(site.prepare, timeout_s=60)).train_examples == 8
    done = await trainer.train(site.train(1), timeout_s=60)
    assert (done.examples, dict(done.metrics)) == (8, {"loss": 1.0})
    delta = unpack(site.spec.schema_.parameters, (site.exchange / "delta.bin").read_bytes())
    assert delta["w"].all()
    order = pb.RunEvaluation(round=1, model_file=str(site.exchange / "model.bin"))
    assert (await trainer.evaluate(order, timeout_s=60)).metrics["loss"] == 0
    await trainer.keep(1, counted=True)
    assert (await trainer.end()).code == 0


@pytest.mark.needs_bubblewrap
@pytest.mark.parametrize(("number", "error_class"), [(7, "FileNotFoundError"), (8, "ConnectionRefusedError|OSError")])
async def test_a_task_that_prints_patients_reads_the_key_or_opens_a_socket_fails_and_tells_nobody(
    site: Site, number: int, error_class: str
) -> None:
    handle = TrainerHandle(site.settings(SandboxMode.REQUIRED))
    await handle.start()
    try:
        await handle.prepare(site.prepare, timeout_s=60)
        with pytest.raises(TaskError) as caught:
            await handle.train(site.train(number), timeout_s=60)
        assert caught.value.error_class in error_class.split("|")
        assert str(caught.value) == f"experiment code failed with {caught.value.error_class}"
        if number == 7:
            log = (site.root / "state/trainer.log").read_text()
            assert "27." in log  # the patient is in the site's own log,
            assert "27." not in caught.value.traceback  # and the key, and the patient, in nothing that could leave
            assert "private key" not in log + caught.value.traceback
    finally:
        handle.kill()
        await handle.exited()
