"""Model files through every instant of a commit: a killed process leaves a model that the journal names."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from federation.aggregator.candidates import Contribution
from federation.aggregator.checkpoints import Checkpoints
from federation.errors import PlanError, StorageError
from federation.names import ExperimentId, PayloadName, RoundNumber, SiteName
from federation.plan import ExperimentSpec, Plan, tensor_rows
from federation.storage.safetensors_files import ModelFile, read_model, write_model
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec, pack

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="weight", dtype=DType.FLOAT32, shape=(4,)),
        TensorSpec(name="half", dtype=DType.FLOAT16, shape=(2,)),
        TensorSpec(name="head", dtype=DType.FLOAT32, shape=(3,), role=TensorRole.LOCAL),
    ]
)
STATE = TensorSchema.of([TensorSpec(name="momentum", dtype=DType.FLOAT32, shape=(4,))])


class Bytes:
    """A payload in memory."""

    def __init__(self, data):
        self.data = bytes(data)
        self.nbytes = len(self.data)

    def pread_into(self, offset, view):
        memoryview(view).cast("B")[:] = self.data[offset : offset + len(memoryview(view).cast("B"))]


@pytest.fixture
def shelf(tmp_path):
    spec = ExperimentSpec(
        name="x", shard="s", plan=Plan(optimizer_state="aggregate"), tensors=tensor_rows(SCHEMA),
        optimizer_tensors=tensor_rows(STATE), metrics=("loss",),
    )  # fmt: skip
    zeros = {row.name: np.zeros(row.shape, dtype=row.dtype.numpy) for row in SCHEMA}
    write_model(tmp_path / "initial.safetensors", SCHEMA, zeros)
    return lambda: Checkpoints(tmp_path, ExperimentId("x-00000001"), spec)


def contribution(change):
    ones = {row.name: np.full(row.shape, change, dtype=row.dtype.numpy) for row in SCHEMA}
    state = {"momentum": np.full(4, change, dtype=np.float32)}
    return Contribution(
        site=SiteName("a"),
        examples=1,
        payloads={
            PayloadName("delta"): Bytes(pack(SCHEMA.parameters, ones)),
            PayloadName("optimizer"): Bytes(pack(STATE, state)),
        },
    )


def weight(file: ModelFile):
    with file:
        return np.frombuffer(file.pread(0, 4), dtype="<f4")[0]


def commit(shelf, number, change=1.0):
    return take(shelf, shelf.combine(RoundNumber(number), [contribution(change)]))


def take(shelf, candidate):
    """What a commit does around its journal line."""
    shelf.sync(candidate)
    shelf.take(candidate)
    return candidate


def vanish(candidate, durable=0):
    """Be killed with so many of the candidate's files durable; the others stay as they are."""
    for index, writer in enumerate(candidate._writers.values()):
        if index < durable:
            writer.sync()
        os.close(writer._descriptor)  # a killed process lets go of its files, and leaves them where they are
        writer._descriptor = -1


def test_rounds_build_on_one_another_and_the_local_head_stays(shelf, tmp_path):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    assert checkpoints.open_optimizer() is None
    for number in (1, 2, 3):
        commit(checkpoints, number)
    checkpoints.export("model", tmp_path / "whole.safetensors")
    schema, arrays = read_model(tmp_path / "whole.safetensors")
    assert schema == SCHEMA
    assert (arrays["weight"] == 3).all() and (arrays["half"] == 3).all() and (arrays["head"] == 0).all()


def test_a_kill_between_checkpoint_and_journal_line_goes_back_to_the_committed_model(shelf):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    first = commit(checkpoints, 1)
    commit(checkpoints, 2)
    again = shelf()
    again.prepare(RoundNumber(1), RoundNumber(0))
    with again.open_model() as model:
        assert model.digest() == first.digest
    assert commit(again, 2).digest != first.digest
    assert weight(again.open_model()) == 2
    assert weight(again.open_optimizer()) == 1


def test_a_kill_in_the_first_commit_goes_back_to_the_initial_model(shelf):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    commit(checkpoints, 1)
    again = shelf()
    again.prepare(RoundNumber(0), RoundNumber(0))
    assert weight(again.open_model()) == 0


@pytest.mark.parametrize("files", [1, 2], ids=["after the model", "after the master"])
def test_a_kill_between_the_files_of_one_commit_goes_back_with_all_of_them(shelf, files):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    commit(checkpoints, 1)
    vanish(checkpoints.combine(RoundNumber(2), [contribution(5.0)]), durable=files)
    again = shelf()
    again.prepare(RoundNumber(1), RoundNumber(0))
    commit(again, 2)
    assert weight(again.open_model()) == 2


def test_the_best_model_is_linked_at_the_next_start_if_that_was_lost(shelf, tmp_path):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    commit(checkpoints, 1)
    checkpoints.keep_best()
    commit(checkpoints, 2)
    again = shelf()
    again.prepare(RoundNumber(2), RoundNumber(2))
    commit(again, 3)
    again.export("best", tmp_path / "best.safetensors")
    assert (read_model(tmp_path / "best.safetensors")[1]["weight"] == 2).all()


@pytest.mark.parametrize("torn", ["header", "values", "empty"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_power_loss_that_tears_a_candidate_costs_nothing_of_what_is_committed(shelf, tmp_path, number, torn):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    for earlier in range(1, number):
        commit(checkpoints, earlier)
    vanish(checkpoints.combine(RoundNumber(number), [contribution(5.0)]))
    for name in ("model", "master", "optimizer"):
        path = tmp_path / "checkpoints" / f"{name}.{'odd' if number % 2 else 'even'}.safetensors"
        content = path.read_bytes()
        half = len(content) // 2
        path.write_bytes({"header": bytes(half) + content[half:], "values": content[:half], "empty": b""}[torn])
    again = shelf()
    again.prepare(RoundNumber(number - 1), RoundNumber(0))
    assert weight(again.open_model()) == number - 1
    commit(again, number)
    assert weight(again.open_model()) == number
    after = shelf()
    after.prepare(RoundNumber(number), RoundNumber(0))
    assert weight(after.open_model()) == number


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_candidate_that_the_journal_may_name_outlives_being_given_up(shelf, number):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    for earlier in range(1, number):
        commit(checkpoints, earlier)
        checkpoints.keep_best()
    candidate = checkpoints.combine(RoundNumber(number), [contribution(5.0)])
    checkpoints.sync(candidate)
    candidate.abort()  # the line was written, and its fsync failed
    again = shelf()
    again.prepare(RoundNumber(number), RoundNumber(0))
    assert weight(again.open_model()) == number + 4


def test_a_power_loss_that_tears_what_best_was_linked_to_costs_no_run(shelf, tmp_path):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    commit(checkpoints, 1)
    # The link to round 1 is lost, and what the name means instead is being written over.
    (tmp_path / "checkpoints" / "best.safetensors").write_bytes(bytes(500))
    again = shelf()
    again.prepare(RoundNumber(1), RoundNumber(1))
    again.export("best", tmp_path / "best.safetensors")
    assert (read_model(tmp_path / "best.safetensors")[1]["weight"] == 1).all()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_where_a_file_has_one_name_only_the_best_model_is_a_copy(shelf, tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    commit(checkpoints, 1)
    checkpoints.keep_best()
    for number in (2, 3):
        commit(checkpoints, number)
    again = shelf()
    again.prepare(RoundNumber(3), RoundNumber(1))
    again.export("best", tmp_path / "best.safetensors")
    assert (read_model(tmp_path / "best.safetensors")[1]["weight"] == 1).all()


def test_only_what_follows_the_committed_round_is_combined(shelf):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    with pytest.raises(RuntimeError, match="round 2 after round 0"):
        commit(checkpoints, 2)


def test_the_best_model_is_durable_before_the_next_line_of_the_journal(shelf, tmp_path, monkeypatch):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    synced = []
    monkeypatch.setattr("federation.aggregator.model_files.sync_folder", synced.append)
    commit(checkpoints, 1)
    assert synced == [tmp_path / "checkpoints"], "what an earlier process may have left"
    commit(checkpoints, 2)
    checkpoints.keep_best()
    assert len(synced) == 1
    commit(checkpoints, 3)
    commit(checkpoints, 4)
    assert len(synced) == 2


def test_only_best_and_the_last_two_are_kept(shelf, tmp_path):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    for number in range(1, 6):
        commit(checkpoints, number)
        checkpoints.keep_best()
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {
        "base.safetensors", "best.safetensors", "model.even.safetensors", "model.odd.safetensors",
        "master.even.safetensors", "master.odd.safetensors", "optimizer.even.safetensors", "optimizer.odd.safetensors",
    }  # fmt: skip


def test_a_candidate_that_diverged_changes_nothing(shelf):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    commit(checkpoints, 1, change=6e4)
    with pytest.raises(PlanError, match="diverged"):
        checkpoints.combine(RoundNumber(2), [contribution(6e4)])
    assert weight(checkpoints.open_model()) == 6e4
    commit(checkpoints, 2, change=-1.0)


def test_a_folder_without_the_committed_model_is_refused(shelf, tmp_path):
    checkpoints = shelf()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    with pytest.raises(StorageError, match="not of round 7"):
        shelf().prepare(RoundNumber(7), RoundNumber(0))


def test_an_initial_model_of_another_shape_is_refused(shelf, tmp_path):
    other = TensorSchema.of([TensorSpec(name="weight", dtype=DType.FLOAT32, shape=(5,))])
    write_model(tmp_path / "initial.safetensors", other, {"weight": np.zeros(5, dtype=np.float32)})
    with pytest.raises(PlanError):
        shelf().prepare(RoundNumber(0), RoundNumber(0))


@pytest.fixture
def adam(tmp_path):
    plan = Plan(algorithm="fedadam", sites=3, downlink="top_k:0.5")
    spec = ExperimentSpec(name="x", shard="s", plan=plan, tensors=tensor_rows(FULL), metrics=("loss",))
    write_model(tmp_path / "initial.safetensors", FULL, {"weight": np.zeros(4, dtype=np.float32)})
    return lambda: Checkpoints(tmp_path, ExperimentId("x-00000001"), spec)


FULL = TensorSchema.of([TensorSpec(name="weight", dtype=DType.FLOAT32, shape=(4,))])


def step(checkpoints, number, change=1.0):
    delta = Bytes(np.full(4, change, dtype="<f4").tobytes())
    row = Contribution(site=SiteName("a"), examples=1, payloads={PayloadName("delta"): delta})
    return checkpoints.combine(RoundNumber(number), [row], connected=1)


def state(checkpoints):
    """What a round goes on from: the model, what sites hold of it, each slot, and N."""
    with checkpoints.open_model() as model:
        found = {"model": model.digest(), "sites": model.metadata["sites"]}
    with checkpoints.open_sent() as held:
        found["held"] = held.digest()
    for name, slot in checkpoints.open_slots().items():
        found[name] = slot.digest()
        slot.close()
    return found


def test_the_state_of_a_method_begins_as_it_says(adam):
    checkpoints = adam()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    slots = checkpoints.open_slots()
    assert weight(slots["momentum"]) == 0
    assert weight(slots["variance"]) == np.float32(checkpoints.algorithm.server().initial("variance")) > 0


def test_what_sites_hold_begins_as_the_model_and_goes_its_own_way(adam):
    checkpoints = adam()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    begun = state(checkpoints)
    assert begun["held"] == begun["model"]
    candidate = step(checkpoints, 1)
    with candidate.open() as held:
        values = np.frombuffer(held.pread(0, 16), dtype="<f4")
    assert np.count_nonzero(values) == 2  # two of four arrive in the first step
    assert candidate.step.from_digest == begun["held"]
    take(checkpoints, candidate)
    after = state(checkpoints)
    assert (after["model"], after["held"]) == (candidate.digest, candidate.sent_digest)
    assert after["model"] != after["held"]


@pytest.mark.parametrize("round_number", [1, 2], ids=["first round", "second round"])
@pytest.mark.parametrize("files", [0, 1, 2, 3, 4])
def test_a_kill_at_each_step_of_a_commit_leaves_model_and_state_of_one_round(adam, round_number, files):
    checkpoints = adam()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    if round_number == 2:
        take(checkpoints, step(checkpoints, 1))
    before = state(checkpoints)
    half = step(checkpoints, round_number, 5.0)
    expected = {"model": half.digest, "held": half.sent_digest, **half.slot_digests, "sites": "3"}
    vanish(half, durable=files)
    again = adam()
    again.prepare(RoundNumber(round_number - 1), RoundNumber(0))
    assert state(again) == before
    take(again, step(again, round_number, 5.0))
    assert state(again) == expected
    after = adam()
    after.prepare(RoundNumber(round_number), RoundNumber(0))
    assert state(after) == expected


def test_sites_the_method_counts_with_never_become_fewer(adam):
    checkpoints = adam()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    delta = Bytes(np.ones(4, dtype="<f4").tobytes())
    row = Contribution(site=SiteName("a"), examples=1, payloads={PayloadName("delta"): delta})
    first = take(checkpoints, checkpoints.combine(RoundNumber(1), [row], connected=7))
    assert first.total_sites == 7
    assert step(checkpoints, 2).total_sites == 7


@pytest.fixture
def clipping(tmp_path):
    plan = Plan(rule="centered_clipping", rule_options={"tau": 1.0})
    spec = ExperimentSpec(name="x", shard="s", plan=plan, tensors=tensor_rows(FULL), metrics=("loss",))
    write_model(tmp_path / "initial.safetensors", FULL, {"weight": np.zeros(4, dtype=np.float32)})
    return lambda: Checkpoints(tmp_path, ExperimentId("x-00000001"), spec)


def kept(tmp_path, number):
    name = f"rule-v.{'odd' if number % 2 else 'even'}.safetensors"
    return float(read_model(tmp_path / "checkpoints" / name)[1]["weight"][0])


def test_what_a_rule_keeps_goes_on_from_round_to_round(clipping, tmp_path):
    checkpoints = clipping()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    assert kept(tmp_path, 0) == 0.0
    for number, expected in ((1, 0.5), (2, 1.0), (3, 1.5)):
        # A change of norm 20 pulls by no more than tau = 1, half of it in each of four coordinates.
        candidate = step(checkpoints, number, 10.0)
        assert candidate.report.weights == {"a": pytest.approx(1 / (20 - number + 1))}
        take(checkpoints, candidate)
        assert kept(tmp_path, number) == expected
        checkpoints = clipping()
        checkpoints.prepare(RoundNumber(number), RoundNumber(0))


@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_kill_at_each_step_of_a_commit_leaves_what_a_rule_keeps_of_the_models_round(clipping, tmp_path, files):
    checkpoints = clipping()
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    take(checkpoints, step(checkpoints, 1, 10.0))
    half = step(checkpoints, 2, 10.0)
    vanish(half, durable=files)
    again = clipping()
    again.prepare(RoundNumber(1), RoundNumber(0))
    assert kept(tmp_path, 1) == 0.5
    assert take(again, step(again, 2, 10.0)).digest == half.digest
    assert kept(tmp_path, 2) == 1.0


def test_a_round_with_too_few_updates_for_its_rule_is_not_aggregated(tmp_path):
    plan = Plan(rule="krum", byzantine=1, quorum=5, sites=5)
    spec = ExperimentSpec(name="x", shard="s", plan=plan, tensors=tensor_rows(FULL), metrics=("loss",))
    write_model(tmp_path / "initial.safetensors", FULL, {"weight": np.zeros(4, dtype=np.float32)})
    checkpoints = Checkpoints(tmp_path, ExperimentId("x-00000001"), spec)
    checkpoints.prepare(RoundNumber(0), RoundNumber(0))
    with pytest.raises(PlanError, match="it needs 5 updates or more and has 1"):
        step(checkpoints, 1)
    assert not list((tmp_path / "checkpoints").glob("*.odd.*"))
