"""What a method sends and keeps at a site: rounds on arrays in memory, state on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from federation import Experiment, GradientTask, Plan
from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.vector import Vector
from federation.compression import decode_payload
from federation.data import ArrayShard, LocalData
from federation.errors import PlanError
from federation.names import SiteName
from federation.tensors import TensorSchema, pack, unpack
from federation.training.client_round import NonFiniteChangeError
from federation.training.state import StateStore
from federation.training.work import Resident, SiteWork

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from federation.tensors.buffers import Array

RNG = np.random.default_rng(3)
SAMPLES, TARGETS = RNG.normal(size=(8, 4)), RNG.normal(size=8)


class LeastSquares(GradientTask):
    def gradient(self, model, samples, targets):
        error = samples @ model["w"] - targets
        return {"loss": float(error @ error) / (2 * len(error))}, {"w": samples.T @ error / len(error)}


class OnlyTrains:
    """A task of the author's own: it says nothing of gradients."""

    def train(self, model, data, round):
        for samples, targets in data.batches(4, round.rng("shuffle")):
            model["w"] -= round.learning_rate * samples.T @ (samples @ model["w"] - targets) / len(targets)
        return {"loss": 1.0}

    def evaluate(self, model, data):
        return {"loss": 0.0}


class Memory:
    """Inputs and outputs of one round."""

    def __init__(self, **arrays: Mapping[str, Array]) -> None:
        self.came = {name.replace("_", "-"): value for name, value in arrays.items()}
        self.went: dict[str, bytes] = {}
        self.schema: TensorSchema | None = None

    def has(self, name: str) -> bool:
        return name in self.came

    def read(self, name: str, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
        for spec in schema:
            arrays[spec.name][...] = self.came[name][spec.name]

    def write(self, name: str, schema: TensorSchema, arrays: Mapping[str, Array]) -> int:
        assert name not in self.went
        self.went[name] = bytes(pack(schema, arrays))
        return len(self.went[name])

    def write_change(self, name: str, schema: TensorSchema, arrays: Mapping[str, Array]) -> int:
        change = {spec.name: arrays[spec.name] - self.came["model"][spec.name] for spec in schema}
        return self.write(name, schema, change)

    def write_bytes(self, name: str, data: bytes) -> int:
        assert name not in self.went
        self.went[name] = bytes(data)
        return len(data)


class Site:
    """An experiment at one site; `start` is a restart of its trainer."""

    def __init__(
        self, folder: Path, *, task: Any = None, method: Algorithm | None = None, dtype: Any = np.float64, **plan: Any
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.experiment = Experiment(
            name="trial",
            model=lambda: {"w": np.zeros(4, dtype), "seen": np.asarray(0)},
            task=task or LeastSquares(batch_size=4),
            shard="s",
            plan=Plan(**{"learning_rate": 0.05, "local_steps": 3, **plan}),
            algorithm=method,
        )
        self.spec, self.arrays = self.experiment.build()
        self.start()

    def start(self) -> None:
        base = pack(self.spec.schema_.local, self.arrays)
        resident = Resident(experiment=self.experiment, spec=self.spec, base=base)
        data = LocalData(ArrayShard(train=(SAMPLES, TARGETS), validation=(SAMPLES, TARGETS)))
        self.state = StateStore(self.folder)
        self.work = SiteWork(resident, site=SiteName("north"), data=data, state=self.state)

    def train(self, number: int, attempt: int = 1, **came: Any):
        memory = Memory(model={"w": np.full(4, float(number)), "seen": 0}, **came)
        self.done = self.work.train(number, attempt, memory, memory)
        return memory.went

    def decoded(self, went: Mapping[str, bytes], name: str) -> Array:
        plan = next(plan for plan in self.spec.uploads() if plan.name == name)
        if plan.codec == "identity":
            return unpack(plan.schema, went[name])["w"]
        return decode_payload(went[name], plan.schema)["w"]


def _scaffold(folder: Path, **plan: Any) -> Site:
    return Site(folder, algorithm="scaffold", **plan)


def _gradient(w: float) -> Array:
    return SAMPLES.T @ (SAMPLES @ np.full(4, w) - TARGETS) / len(TARGETS)


CONTROL = {"w": np.full(4, 0.5)}


def test_scaffold_sends_its_change_and_that_of_its_control_variate(tmp_path: Path) -> None:
    site = _scaffold(tmp_path, estimator="full", local_steps=1)
    went = site.train(1, control=CONTROL)
    np.testing.assert_allclose(site.decoded(went, "delta"), -0.05 * (_gradient(1) + 0.5), rtol=1e-12)
    np.testing.assert_allclose(site.decoded(went, "control"), _gradient(1), rtol=1e-12)
    assert list(site.done.payload_bytes) == ["delta", "buffers", "control"]
    assert site.done.payload_bytes["control"] == 32
    assert (site.done.steps, site.done.oracle_calls, site.done.examples) == (1, 16, 8)


def test_an_update_that_counted_promotes_the_control_variate(tmp_path: Path) -> None:
    site = _scaffold(tmp_path)
    site.train(1, control=CONTROL)
    site.work.keep(1, 1, counted=True)
    went = site.train(2, control=CONTROL)
    np.testing.assert_allclose(site.decoded(went, "control"), _gradient(2) - _gradient(1), rtol=1e-10)


def test_an_update_that_did_not_count_leaves_the_control_variate_as_it_was(tmp_path: Path) -> None:
    site = _scaffold(tmp_path)
    site.train(1, control=CONTROL)
    site.work.keep(1, 1, counted=True)
    site.train(2, control=CONTROL)
    site.work.keep(2, 1, counted=False)
    went = site.train(3, control=CONTROL)
    np.testing.assert_allclose(site.decoded(went, "control"), _gradient(3) - _gradient(1), rtol=1e-10)


def test_a_trainer_killed_before_the_verdict_still_promotes(tmp_path: Path) -> None:
    site = _scaffold(tmp_path)
    site.train(1, control=CONTROL)
    site.start()
    site.work.keep(1, 1, counted=True)
    site.start()
    went = site.train(2, control=CONTROL)
    np.testing.assert_allclose(site.decoded(went, "control"), _gradient(2) - _gradient(1), rtol=1e-10)


def test_asked_again_a_site_sends_the_same_bytes(tmp_path: Path) -> None:
    site = _scaffold(tmp_path, compression="rand_k:2")
    first = site.train(1, 1, control=CONTROL)
    assert site.train(1, 2, control=CONTROL) == first
    assert site.train(2, 1, control=CONTROL) != first


def test_a_compressed_method_follows_what_the_server_decodes(tmp_path: Path) -> None:
    site = _scaffold(tmp_path, compression="rand_k:2")
    went = site.train(1, control=CONTROL)
    decoded = site.decoded(went, "control")
    assert (decoded != 0).sum() == 2
    assert site.done.payload_bytes["delta"] == len(went["delta"])
    site.work.keep(1, 1, counted=True)
    # d = 4, K = 2: omega = 1, so the state follows half of what was decoded.
    np.testing.assert_allclose(site.state.kept.method["control/w"], decoded / 2, rtol=1e-15)


def test_error_feedback_is_pending_until_the_verdict(tmp_path: Path) -> None:
    site = Site(tmp_path, compression="top_k:1")
    plain = Site(tmp_path / "plain")
    changes = {number: plain.decoded(plain.train(number), "delta") for number in (1, 2, 3)}

    first = site.decoded(site.train(1), "delta")
    assert (first != 0).sum() == 1
    error = changes[1] - first
    site.work.keep(1, 1, counted=True)

    second = site.decoded(site.train(2), "delta")
    largest = np.argmax(np.abs(changes[2] + error))
    np.testing.assert_allclose(second[largest], (changes[2] + error)[largest], rtol=1e-12)
    site.work.keep(2, 1, counted=False)
    np.testing.assert_allclose(site.state.kept.method["feedback.delta/error/w"], error, rtol=1e-12)

    third = site.decoded(site.train(3), "delta")
    largest = np.argmax(np.abs(changes[3] + error))
    np.testing.assert_allclose(third[largest], (changes[3] + error)[largest], rtol=1e-12)


def test_at_a_site_too_what_is_added_up_is_float32_where_parameters_are_half_precision(tmp_path: Path) -> None:
    half = np.dtype(ml_dtypes.bfloat16)
    site = Site(tmp_path, dtype=half, algorithm="scaffold", compression="top_k:1")
    control = site.decoded(site.train(1, control={"w": np.full(4, 0.5, np.float32)}), "control")
    assert control.dtype == np.float32
    site.work.keep(1, 1, counted=True)
    kept = site.state.kept.method
    assert {name: array.dtype.name for name, array in kept.items()} == {
        "control/w": "float32",
        "feedback.delta/error/w": "float32",
    }
    # The gradient is rounded to bfloat16 by the task; what is kept of it, the element that was sent, is not.
    gradient = _gradient(1.0).astype(half).astype(np.float32)
    largest = np.argmax(np.abs(gradient))
    np.testing.assert_array_equal(kept["control/w"], np.where(np.arange(4) == largest, gradient, 0))


def test_small_changes_in_half_precision_are_not_lost_by_error_feedback(tmp_path: Path) -> None:
    """0.001 beside an error of 1: added up in bfloat16 it would never be."""
    half = np.dtype(ml_dtypes.bfloat16)

    def creep(round):
        change = np.full(4, 1e-3, np.float32)
        change[round.number % 2] = 1.0 if round.number <= 2 else 2.0  # the others wait
        round.send("delta", Vector({"w": change}))

    site = Site(tmp_path, dtype=half, method=_method(creep), compression="top_k:1", error_feedback=True)
    sent = np.zeros(4)
    for number in range(1, 101):
        sent += site.decoded(site.train(number), "delta").astype(np.float64)
        site.work.keep(number, 1, counted=True)
    np.testing.assert_allclose(site.state.kept.method["feedback.delta/error/w"][2:] + sent[2:], 0.1, rtol=1e-4)


def test_without_error_feedback_nothing_is_kept(tmp_path: Path) -> None:
    site = Site(tmp_path, compression="top_k:1", error_feedback=False)
    site.train(1)
    assert not site.work.has_pending


def test_any_task_may_have_its_change_compressed(tmp_path: Path) -> None:
    site = Site(tmp_path, task=OnlyTrains(), compression="rand_k:4")
    change = site.decoded(site.train(1), "delta")
    plain = Site(tmp_path / "plain", task=OnlyTrains())
    np.testing.assert_allclose(change, plain.decoded(plain.train(1), "delta"), rtol=1e-12)
    assert (site.done.steps, site.done.oracle_calls) == (plain.done.steps, plain.done.oracle_calls) == (2, 8)


def test_a_task_without_a_problem_cannot_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"task OnlyTrains has no method problem\(\); algorithm 'scaffold'"):
        _scaffold(tmp_path, task=OnlyTrains())


def test_scalars_are_one_payload(tmp_path: Path) -> None:
    site = Site(tmp_path, algorithm="qfedavg", options={"q": 1.0})
    went = site.train(1)
    plan = next(plan for plan in site.spec.uploads() if plan.name == "scalars")
    loss = np.mean((SAMPLES @ np.ones(4) - TARGETS) ** 2) / 2
    assert unpack(plan.schema, went["scalars"])["loss"].item() == pytest.approx(loss)


class _Client(ClientHalf):
    def work(self, round):
        self.problem(round)

    def problem(self, round):
        raise NotImplementedError


def _method(work) -> Algorithm:
    client = type("Client", (_Client,), {"problem": staticmethod(work)})
    return type(
        "Mine",
        (Algorithm,),
        {"name": "mine", "title": "Mine", "source": "none", "__annotations__": {}, "client": lambda self: client()},
    )()


def test_a_method_of_the_authors_own_runs_from_its_object(tmp_path: Path) -> None:
    def double(round):
        round.problem.run()
        sent = round.send("delta", 2.0 * (round.problem.parameters - round.start))
        round.problem.parameters.assign(round.start)
        assert sent["w"].shape == (4,)

    site, plain = Site(tmp_path / "mine", method=_method(double)), Site(tmp_path / "plain")
    assert site.spec.plan.algorithm == "mine"
    np.testing.assert_array_equal(site.decoded(site.train(1), "delta"), 2 * plain.decoded(plain.train(1), "delta"))


def test_a_method_that_sends_nothing_is_told_so(tmp_path: Path) -> None:
    site = Site(tmp_path, method=_method(lambda round: round.problem.run()))
    with pytest.raises(PlanError, match="sent no change in round 1"):
        site.train(1)


def test_a_vector_that_is_not_of_the_payload_is_refused(tmp_path: Path) -> None:
    def send(name, vector):
        return lambda round: round.send(name, vector)

    for name, arrays, text in (
        ("control", {"w": np.zeros(4)}, "no payload 'control'"),
        ("delta", {}, "tensor 'w' is missing"),
        ("delta", {"w": np.zeros(4, np.float32)}, r"is float32\[4\], expected float64\[4\]"),
        ("delta", {"w": np.zeros(3)}, r"is float64\[3\], expected float64\[4\]"),
    ):
        site = Site(tmp_path, method=_method(send(name, Vector(arrays))))
        with pytest.raises(ValueError, match=text):
            site.train(1)


def test_a_payload_is_sent_once(tmp_path: Path) -> None:
    def twice(round):
        round.send_change()
        round.send_change()

    with pytest.raises(ValueError, match="was sent already"):
        Site(tmp_path, method=_method(twice)).train(1)


def test_a_change_that_diverged_is_not_encoded(tmp_path: Path) -> None:
    def diverge(round):
        round.problem.parameters["w"][...] = np.inf
        round.send_change()

    with pytest.raises(NonFiniteChangeError, match="payload 'delta' cannot be encoded"):
        Site(tmp_path, method=_method(diverge), compression="rand_k:2").train(1)


def test_a_whole_round_may_be_sent_under_any_codec(tmp_path: Path) -> None:
    def whole(round):
        round.problem.run()
        sent = round.send("delta", round.problem.parameters - round.start, whole=True)
        np.testing.assert_array_equal(sent["w"], round.problem.parameters["w"] - round.start["w"])

    site, plain = Site(tmp_path / "a", method=_method(whole), compression="rand_k:1"), Site(tmp_path / "b")
    np.testing.assert_array_equal(site.decoded(site.train(1), "delta"), plain.decoded(plain.train(1), "delta"))


def test_sites_take_turns_with_one_resident_model(tmp_path: Path) -> None:
    site = Site(tmp_path, local=("seen",))
    other = StateStore(None)
    assert site.train(1).keys() == {"delta"}
    resident = site.work._resident
    data = LocalData(ArrayShard(train=(SAMPLES[:4], TARGETS[:4]), validation=(SAMPLES, TARGETS)))
    south = SiteWork(resident, site=SiteName("south"), data=data, state=other)
    memory = Memory(model={"w": np.full(4, 1.0)})
    south.train(1, 1, memory, memory)
    assert other.has_pending
    again = site.train(1)
    fresh = Site(tmp_path / "fresh", local=("seen",)).train(1)
    assert again == fresh


def test_personal_metrics_come_from_the_state_of_the_round(tmp_path: Path) -> None:
    site = Site(tmp_path, algorithm="ditto", options={"strength": 0.0})
    site.train(1)
    memory = Memory(model={"w": np.full(4, 1.0), "seen": 0})
    metrics = site.work.evaluate(1, memory).metrics
    assert metrics.keys() == {"loss", "personal_loss"}
    assert metrics["personal_loss"] < metrics["loss"]
    before = site.state.of_round(1).method["personal/w"].copy()
    site.work.evaluate(1, memory)
    np.testing.assert_array_equal(site.state.of_round(1).method["personal/w"], before)
