from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation import Experiment, Plan
from federation.data import ArrayShard, LocalData
from federation.errors import PlanError, StorageError
from federation.names import SiteName
from federation.tensors import pack, unpack
from federation.training.loop import LocalWork, MetricsError, NonFiniteMetricError, WrongModelError

if TYPE_CHECKING:
    from pathlib import Path


class Task:
    """Adds one to `w`, ten to the head, counts batches and says what it was told."""

    metric_names = ("loss", "told")

    def __init__(self) -> None:
        self.rounds: list[object] = []
        self.evaluated: list[dict[str, list[float]]] = []
        self.result: object = {"loss": 0.5}
        self.seen = 0

    def train(self, model, data, round):
        self.rounds.append(round)
        model["w"] += 1
        model["head"] += 10
        model["n"] += 1
        round.optimizer_state["w/m"] = round.optimizer_state.get("w/m", np.zeros(2)) + 1
        if self.seen:
            for _ in zip(range(self.seen), data.batches(2, round.rng("shuffle")), strict=False):
                pass
        return self.result

    def evaluate(self, model, data):
        self.evaluated.append({name: value.tolist() for name, value in model.items()})
        return self.result

    def optimizer_tensors(self, model, learning_rate):
        return {"w/m": np.zeros(2), "head/m": np.zeros(3)}


def _model() -> dict[str, np.ndarray]:
    return {"w": np.zeros(2), "head": np.zeros(3), "n": np.zeros((), np.int64)}


class Site:
    """One site's work, and the files a collaborator would keep for it."""

    def __init__(self, folder: Path, task: Task | None = None, **plan: object) -> None:
        self.folder = folder
        self.task = task or Task()
        self.experiment = Experiment(
            name="trial", model=_model, task=self.task, shard="s", plan=Plan(local=("head",), **plan)
        )
        self.spec, self.arrays = self.experiment.build()
        self.schema = self.spec.schema_
        (folder / "base").write_bytes(pack(self.schema.local, self.arrays))
        self.work = self.start()

    def start(self) -> LocalWork:
        rows = (np.zeros((6, 1)), np.zeros(6))
        self.work = LocalWork(
            experiment=self.experiment,
            spec=self.spec,
            site=SiteName("north"),
            data=LocalData(ArrayShard(train=rows, validation=(rows[0][:2], rows[1][:2]))),
            workspace=self.folder,
            base=self.folder / "base",
        )
        return self.work

    def train(self, number: int, w: float, **more: object):
        self.write(w)
        done = self.work.train(
            number=number,
            model=self.folder / "model",
            delta=self.folder / "delta",
            buffers=self.folder / "buffers",
            **more,  # type: ignore[arg-type]
        )
        delta = unpack(self.schema.parameters, (self.folder / "delta").read_bytes())
        buffers = unpack(self.schema.buffers, (self.folder / "buffers").read_bytes())
        return done, delta, buffers

    def write(self, w: float) -> None:
        arrays = {"w": np.full(2, float(w)), "n": np.asarray(5, np.int64)}
        (self.folder / "model").write_bytes(pack(self.schema.federated, arrays))

    def head_at_evaluation(self, number: int) -> list[float]:
        self.write(0.0)
        self.work.evaluate(number=number, model=self.folder / "model")
        return self.task.evaluated[-1]["head"]


def test_a_round_sends_changes_of_parameters_and_values_of_buffers(tmp_path) -> None:
    done, delta, buffers = Site(tmp_path).train(1, w=3.0)
    assert delta.keys() == {"w"}
    assert delta["w"].tolist() == [1, 1]
    assert buffers["n"].item() == 6
    assert (done.examples, done.steps, done.oracle_calls, done.metrics) == (6, 0, 6, {"loss": 0.5})


def test_a_task_is_told_what_the_signed_plan_says(tmp_path) -> None:
    site = Site(tmp_path, local_steps=7, learning_rate=0.25, threads=2, seed=11)
    site.experiment.plan = Plan(learning_rate=99)
    site.start()
    site.train(3, w=0)
    told = site.task.rounds[-1]
    assert (told.number, told.site, told.seed, told.epochs, told.steps) == (3, "north", 11, None, 7)
    assert (told.learning_rate, told.threads) == (0.25, 2)


def test_examples_and_steps_are_those_that_were_drawn(tmp_path) -> None:
    task = Task()
    task.seen = 2
    done, _, _ = Site(tmp_path, task).train(1, w=0)
    assert (done.examples, done.steps) == (4, 2)


def test_a_repeated_or_failed_attempt_leaves_no_trace(tmp_path) -> None:
    site = Site(tmp_path)
    site.task.result = 1 / 3
    with pytest.raises(MetricsError):
        site.train(1, w=0)
    site.task.result = {"loss": 0.0}
    first = site.train(1, w=0)[1]["w"].tolist()
    second = site.train(1, w=0, attempt=2)[1]["w"].tolist()
    assert first == second == [1, 1]
    assert site.head_at_evaluation(1) == [10, 10, 10]


def test_a_local_head_is_kept_when_the_update_counted_and_dropped_when_not(tmp_path) -> None:
    site = Site(tmp_path)
    site.train(1, w=0)
    site.work.keep(1, counted=True)
    assert site.head_at_evaluation(0) == [10, 10, 10]
    site.train(2, w=0)
    assert site.head_at_evaluation(2) == [20, 20, 20]
    site.work.keep(2, counted=False)
    assert site.head_at_evaluation(2) == [10, 10, 10]


def test_a_restarted_trainer_goes_on_from_what_was_kept_and_can_still_keep_what_was_pending(tmp_path) -> None:
    site = Site(tmp_path)
    site.train(1, w=0)
    site.start().keep(1, counted=True)
    site.train(2, w=0)
    site.start()
    assert site.head_at_evaluation(2) == [20, 20, 20]
    assert site.head_at_evaluation(1) == [10, 10, 10]


@pytest.mark.parametrize(("state", "expected"), [("reset", [1, 1]), ("keep", [1, 2])])
def test_optimizer_state_is_reset_or_kept_as_the_plan_says(tmp_path, state, expected) -> None:
    site = Site(tmp_path, optimizer_state=state)
    for number in (1, 2):
        site.train(number, w=0)
        site.work.keep(number, counted=True)
        assert site.task.rounds[-1].optimizer_state["w/m"].tolist() == [expected[number - 1]] * 2


def test_kept_optimizer_state_of_an_update_that_did_not_count_is_dropped(tmp_path) -> None:
    site = Site(tmp_path, optimizer_state="keep")
    site.train(1, w=0)
    site.work.keep(1, counted=False)
    site.train(2, w=0)
    assert site.task.rounds[-1].optimizer_state["w/m"].tolist() == [1, 1]


def test_aggregated_optimizer_state_comes_in_and_goes_out(tmp_path) -> None:
    site = Site(tmp_path, optimizer_state="aggregate")
    assert [row.name for row in site.spec.optimizer_tensors] == ["w/m"]
    site.train(1, w=0, optimizer_out=tmp_path / "out")
    assert np.fromfile(tmp_path / "out").tolist() == [1, 1]
    np.array([5.0, 6.0]).tofile(tmp_path / "in")
    site.train(2, w=0, optimizer_in=tmp_path / "in", optimizer_out=tmp_path / "out")
    assert np.fromfile(tmp_path / "out").tolist() == [6, 7]


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (3, MetricsError),
        (None, MetricsError),
        ({"loss": "low"}, MetricsError),
        ({"loss": None}, MetricsError),
        ({"loss": 1.0, "age_of_patient_7": 63}, MetricsError),
        ({"loss": float("nan")}, NonFiniteMetricError),
        ({"loss": np.float32("inf")}, NonFiniteMetricError),
    ],
    ids=str,
)
def test_what_is_no_metric_is_refused(tmp_path, result, error) -> None:
    site = Site(tmp_path)
    site.task.result = result
    with pytest.raises(error):
        site.train(1, w=0)
    with pytest.raises(error):
        site.head_at_evaluation(1)


def test_an_evaluation_without_the_metric_that_chooses_the_best_is_refused(tmp_path) -> None:
    site = Site(tmp_path)
    site.task.result = {"told": 1}
    with pytest.raises(MetricsError, match="'loss'"):
        site.head_at_evaluation(1)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"w": np.zeros(3), "head": np.zeros(3), "n": np.zeros((), np.int64)}, r"'w' is float64\[3\].*float64\[2\]"),
        ({"w": np.zeros(2), "head": np.zeros(3)}, "lacks tensor 'n'"),
        ({**_model(), "more": np.zeros(1)}, "more"),
        ({**_model(), "w": np.zeros(2, np.float32)}, "float32"),
    ],
    ids=["shape", "missing", "additional", "dtype"],
)
def test_another_model_than_the_signed_one_does_not_train(tmp_path, model, says) -> None:
    site = Site(tmp_path)
    site.experiment.model = lambda: model
    with pytest.raises(WrongModelError, match=says):
        site.start()


def test_local_tensors_without_initial_values_do_not_train(tmp_path) -> None:
    site = Site(tmp_path)
    with pytest.raises(PlanError, match="initial values did not come"):
        LocalWork(
            experiment=site.experiment,
            spec=site.spec,
            site=SiteName("north"),
            data=LocalData(ArrayShard(train=(np.zeros(1), np.zeros(1)), validation=(np.zeros(1), np.zeros(1)))),
            workspace=tmp_path,
            base=None,
        )


def test_a_model_file_that_is_too_short_is_a_storage_error(tmp_path) -> None:
    site = Site(tmp_path)
    (tmp_path / "model").write_bytes(b"\x00")
    with pytest.raises(StorageError):
        site.work.train(number=1, model=tmp_path / "model", delta=tmp_path / "delta", buffers=tmp_path / "buffers")


def test_a_task_that_changes_a_tensors_type_sends_nothing(tmp_path) -> None:
    site = Site(tmp_path)

    def train(model, data, round):
        model["w"] = model["w"].astype(np.float32)
        return {"loss": 0.0}

    site.task.train = train  # type: ignore[method-assign]
    with pytest.raises(PlanError, match="changed tensor 'w'"):
        site.train(1, w=0)
