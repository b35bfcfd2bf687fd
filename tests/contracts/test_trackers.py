"""What every tracker does: starts, shows rounds, ends, and has, read by its own library, the values it was shown."""

from __future__ import annotations

import csv
import struct
from typing import TYPE_CHECKING, Any

import pytest

from federation.errors import ConfigurationError
from federation.names import Epoch, RoundNumber
from federation.rounds.history import RoundRecord
from federation.tracking import Tracker, load_tracker
from federation.tracking.tracker import parameters_of, scalars_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NEEDS = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
RUN: dict[str, Any] = {
    "name": "digits",
    "label": "mine",
    "spec": {"plan": {"rounds": 2, "best": {"metric": "loss"}}},
    "sites": [f"site-{number:03d}" for number in range(100)],
    "partition": "",
}
Kept = tuple[dict[int, dict[str, float]], dict[str, str] | None, str | None]
"""By round and name; parameters, and how it ended: None where a tracker has no place for them."""

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # of MLflow's own tables


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=RoundNumber(number), epoch=Epoch(1), started_at=1e9, seconds=1.5, metrics={"loss": 1.0 / number},
        train_metrics={"loss": 2.0}, phase_seconds={"collect": 0.25}, algorithm_scalars={"tau": 3.0}, model_digest="ab",
        bytes_up=123456789,
    )  # fmt: skip


def read_csv(folder: Path) -> Kept:
    rows = list(csv.DictReader((folder / "rounds.csv").read_text().splitlines()))
    return {int(row.pop("round")): {name: float(value) for name, value in row.items()} for row in rows}, None, None


def read_tensorboard(folder: Path) -> Kept:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder)).Reload()
    rounds: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            rounds.setdefault(event.step, {})[name] = event.value
    texts = {
        tag.removesuffix("/text_summary"): make_ndarray(events.Tensors(tag)[-1].tensor_proto)[0].decode()
        for tag in events.Tags()["tensors"]
    }
    rows = [line.strip("| ").split(" | ") for line in texts["plan"].splitlines()[2:]]
    return rounds, {row[0]: row[1] if len(row) > 1 else "" for row in rows}, texts["outcome"]


def read_mlflow(folder: Path) -> Kept:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    run = client.search_runs([experiment.experiment_id])[0]
    assert run.info.run_name == "mine"
    rounds: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            rounds.setdefault(metric.step, {})[name] = metric.value
    assert run.info.status == ("FINISHED" if run.data.tags["outcome"] == "completed" else "FAILED")
    return rounds, run.data.params, run.data.tags["outcome"]


def read_wandb(folder: Path) -> Kept:
    import wandb
    from wandb.proto import wandb_internal_pb2 as pb

    wandb.teardown()  # its own process may still be writing when a run has finished
    rounds: dict[int, dict[str, float]] = {}
    parameters: dict[str, str] = {}
    summary: dict[str, str] = {}
    latest = max((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for data in records_of(latest.read_bytes()):
        got = pb.Record.FromString(data)
        if got.WhichOneof("record_type") == "run":
            assert (got.run.project, got.run.display_name) == ("digits", "mine")
            parameters.update((item.key, item.value_json.strip('"')) for item in got.run.config.update)
        if got.WhichOneof("record_type") == "history":
            values = {item.key or "/".join(item.nested_key): item.value_json for item in got.history.item}
            step = got.history.step.num
            rounds[step] = {name: float(value) for name, value in values.items() if not name.startswith("_")}
        if got.WhichOneof("record_type") == "summary":
            summary.update((item.key or "/".join(item.nested_key), item.value_json) for item in got.summary.update)
    parameters.pop("_wandb", None)
    return rounds, parameters, summary["outcome"].strip('"')


def records_of(log: bytes) -> Iterator[bytes]:
    """Yield what a W&B file has, which is LevelDB's log: blocks of 32 KiB, parts of records with checksum and kind."""
    place, parts = 7, b""
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", log, place + 4)
        parts += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # the whole, or the last part
            yield parts
            parts = b""


READ: dict[str, Callable[[Path], Kept]] = {
    "csv": read_csv, "tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb,
}  # fmt: skip


@pytest.fixture(name="start", params=READ)
def _start(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[], Tracker], Callable[[], Kept]]:
    """Return what starts a tracker of each kind, and what reads what it kept."""
    name = str(request.param)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def start() -> Tracker:
        tracker = load_tracker(f"{name}:{tmp_path / 'kept'}")
        assert isinstance(tracker, Tracker)
        tracker.start(RUN)
        return tracker

    return start, lambda: READ[name](tmp_path / "kept")


def test_a_tracker_has_every_value_it_was_shown(start: tuple[Callable[[], Tracker], Callable[[], Kept]]) -> None:
    tracker = start[0]()
    for number in (1, 2):
        tracker.round(record(number))
    tracker.end("completed")
    rounds, parameters, outcome = start[1]()
    assert rounds.keys() == {1, 2}
    for number, values in rounds.items():
        assert values == {name: pytest.approx(value) for name, value in scalars_of(record(number)).items()}
    if parameters is not None:
        given = {name: str(value) for name, value in parameters_of(RUN).items() if value != ""}
        assert {name: value for name, value in parameters.items() if value} == given
        assert outcome == "completed"


def test_a_run_that_is_started_again_is_whole_and_alone(
    start: tuple[Callable[[], Tracker], Callable[[], Kept]],
) -> None:
    first = start[0]()
    for number in (1, 2, 3):
        first.round(record(number))
    first.end("failed")
    again = start[0]()
    again.round(record(1))
    again.end("completed")
    rounds, _, outcome = start[1]()
    assert rounds.keys() == {1}
    assert outcome in ("completed", None)


@pytest.mark.parametrize("name", NEEDS)
def test_a_tracker_whose_package_is_missing_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, NEEDS[name], None)
    with pytest.raises(ConfigurationError, match=r"pip install 'federation\["):
        load_tracker(f"{name}:{tmp_path}").start(RUN)


@pytest.mark.parametrize("name", READ)
def test_a_place_that_cannot_be_written_is_an_error_at_the_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=f"tracker {name} cannot"):
        load_tracker(f"{name}:{tmp_path / 'file' / 'in'}").start(RUN)
