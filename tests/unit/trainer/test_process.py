"""The trainer as its owner meets it: a real child on a socket. Confinement is `tests/integration`'s."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from federation.errors import MalformedMessageError
from federation.trainer.orders import Orders
from federation.v1 import trainer_pb2 as pb
from federation.wire.schemas import schema_to_proto


@pytest.fixture
def ready(start, numpy_case):
    trainer = start()
    answer = trainer.ask(prepare=numpy_case.prepare)
    assert answer.WhichOneof("message") == "prepared", answer
    return trainer


def test_an_experiment_on_arrays_is_prepared_trained_evaluated_and_kept_without_torch(start, numpy_case) -> None:
    trainer = start()
    prepared = trainer.ask(prepare=numpy_case.prepare).prepared
    assert (prepared.train_examples, prepared.validation_examples) == (32, 8)
    assert prepared.seconds > 0
    trained = trainer.ask(train=numpy_case.train(1)).trained
    assert (trained.examples, dict(trained.metrics)) == (32, {"loss": 0.5})
    assert numpy_case.delta().keys() == {"w"}
    assert numpy_case.delta()["w"].any()
    assert dict(trainer.ask(evaluate=numpy_case.evaluate(1)).evaluated.metrics) == {"loss": 0, "head": 1, "torch": 0}
    assert trainer.ask(keep=pb.KeepState(round=1, attempt=1, counted=False)).HasField("done")
    evaluated = trainer.ask(evaluate=numpy_case.evaluate(1)).evaluated
    assert (evaluated.examples, evaluated.metrics["head"]) == (8, 0)
    assert trainer.ask(end=pb.EndTrainer()).HasField("done")
    assert trainer.process.wait(timeout=60) == 0


def test_an_order_whose_schema_is_not_that_of_its_spec_is_refused(numpy_case) -> None:
    order = numpy_case.prepare
    order.schema.CopyFrom(schema_to_proto(numpy_case.schema))
    order.schema.tensors[-1].shape.append(2)
    with pytest.raises(MalformedMessageError, match="not that of its spec"):
        Orders().prepare(order)


@pytest.mark.needs_torch
def test_a_torch_experiment_learns_over_rounds_and_repeats_bit_for_bit(start, torch_case) -> None:
    trainer, case = start(), torch_case
    assert trainer.ask(prepare=case.prepare).HasField("prepared")
    losses = []
    arrays = case.arrays
    for number in (1, 2, 3):
        case.write_model(arrays)
        answer = trainer.ask(train=case.train(number))
        assert answer.trained.steps == 24
        losses.append(answer.trained.metrics["loss"])
        first = (case.folder / "delta").read_bytes()
        trainer.ask(train=case.train(number, attempt=2))
        assert (case.folder / "delta").read_bytes() == first
        arrays = {**arrays, **{name: arrays[name] + change for name, change in case.delta().items()}}
    assert losses == sorted(losses, reverse=True)
    assert 0 <= trainer.ask(evaluate=case.evaluate(3)).evaluated.metrics["accuracy"] <= 1
    other = start()
    other.ask(prepare=case.prepare)
    other.ask(train=case.train(3))
    assert (case.folder / "delta").read_bytes() == first


def test_what_experiment_code_raises_is_answered_and_the_trainer_lives_on(ready, numpy_case) -> None:
    failed = ready.ask(train=numpy_case.train(13)).failed
    assert (failed.error_class, failed.permanent) == ("KeyError", False)
    assert "patient 7" in failed.traceback
    assert ready.ask(train=numpy_case.train(1)).HasField("trained")


def test_experiment_code_that_exits_does_not_end_the_trainer(ready, numpy_case) -> None:
    assert ready.ask(train=numpy_case.train(14)).failed.error_class == "SystemExit"
    assert ready.ask(train=numpy_case.train(1)).HasField("trained")


def test_a_metric_that_is_no_number_fails_the_order(ready, numpy_case) -> None:
    assert ready.ask(train=numpy_case.train(15)).failed.error_class == "NonFiniteMetricError"


def test_what_experiment_code_prints_is_in_the_log_and_nowhere_else(ready, numpy_case) -> None:
    answer = ready.ask(train=numpy_case.train(1))
    assert b"training round" not in answer.SerializeToString()
    assert "training round 1 at north" in ready.log.read_text()


def test_the_end_of_the_socket_is_the_end_of_the_trainer(ready) -> None:
    assert ready.close() == 0


def test_a_trainer_that_was_interrupted_at_the_terminal_goes_on(ready, numpy_case) -> None:
    os.kill(ready.process.pid, signal.SIGINT)
    assert ready.ask(train=numpy_case.train(1)).HasField("trained")


def test_orders_that_cannot_be_read_end_the_trainer(start) -> None:
    trainer = start()
    trainer.socket.sendall(b"\xff\xff\xff\xff")
    assert trainer.process.wait(timeout=60) == 1
    assert "cannot be read" in trainer.log.read_text()


def test_orders_before_it_is_prepared_and_empty_ones_fail(start, numpy_case) -> None:
    trainer = start()
    for message in ({"train": numpy_case.train(1)}, {"evaluate": numpy_case.evaluate(1)}, {}):
        assert trainer.ask(**message).failed.error_class == "MalformedMessageError"
    failed = trainer.ask(prepare=pb.PrepareTrainer()).failed
    assert (failed.error_class, failed.permanent) == ("MalformedMessageError", True)


def test_shards_are_described_each_by_itself(start, numpy_case) -> None:
    good = numpy_case.shard
    missing = pb.ShardConfig(name="gone", factory="surely_not_there:Shard")
    options = pb.ShardConfig(name="options", factory=good.factory, options_json="[1]")
    described = start().ask(describe=pb.DescribeShards(shards=[missing, good, options])).described
    assert [shard.name for shard in described.shards] == ["gone", "patients", "options"]
    assert described.shards[0].error_class == "ModuleNotFoundError"
    assert "surely_not_there" in described.shards[0].error_text
    assert not described.shards[1].error_class
    assert (described.shards[1].train_examples, described.shards[1].validation_examples) == (32, 8)
    assert list(described.shards[1].sample_shape) == [3]
    assert list(described.shards[1].target_shape) == []
    assert "not JSON" in described.shards[2].error_text or "expected a table" in described.shards[2].error_text


def test_several_shards_are_trained_on_as_one(start, numpy_case) -> None:
    order = numpy_case.prepare
    order.shards.add().CopyFrom(order.shards[0])
    order.shards[1].name = "more"
    assert start().ask(prepare=order).prepared.train_examples == 64


def test_a_shard_of_the_wrong_shape_is_an_error_that_names_it(start, numpy_case) -> None:
    np.savez(numpy_case.folder / "patients.npz", x=np.zeros((9, 5), np.float32), y=np.zeros(9))
    failed = start().ask(prepare=numpy_case.prepare).failed
    assert (failed.error_class, failed.permanent) == ("WrongShapeError", True)
    assert "'patients' gives samples of shape (5,), the experiment takes (3,)" in failed.traceback


def test_a_bundle_that_does_not_import_is_a_permanent_failure(start, numpy_case) -> None:
    (numpy_case.folder / "bundle" / "experiment.py").write_text("x = (\n")
    failed = start().ask(prepare=numpy_case.prepare).failed
    assert (failed.error_class, failed.permanent) == ("PlanError", True)
    assert "line 1" in failed.traceback


def test_the_signed_plan_holds_whatever_the_bundle_says_here(start, numpy_case) -> None:
    order = numpy_case.prepare
    order.spec_json = order.spec_json.replace('"loss","head"', '"only","loss"')
    trainer = start()
    assert trainer.ask(prepare=order).HasField("prepared")
    assert trainer.ask(evaluate=numpy_case.evaluate(1)).failed.error_class == "MetricsError"


def test_a_long_traceback_is_cut_at_its_beginning(start, case) -> None:
    deep = case(
        "import numpy as np\nfrom federation import Experiment\n"
        "class Task:\n"
        "    def train(self, model, data, round): raise ValueError('x' * 200_000 + 'the end')\n"
        "    def evaluate(self, model, data): return {}\n"
        "experiment = Experiment(name='t', model={'w': np.zeros(1)}, task=Task(), shard='patients')\n"
    )
    trainer = start()
    trainer.ask(prepare=deep.prepare)
    failed = trainer.ask(train=deep.train(1)).failed
    assert len(failed.traceback.encode()) <= 64 * 1024
    assert failed.traceback.rstrip().endswith("the end")


def test_a_restarted_trainer_keeps_what_the_one_before_left_pending(start, numpy_case) -> None:
    first = start()
    first.ask(prepare=numpy_case.prepare)
    first.ask(train=numpy_case.train(1))
    first.process.kill()
    second = start()
    second.ask(prepare=numpy_case.prepare)
    second.ask(keep=pb.KeepState(round=1, attempt=1, counted=True))
    assert second.ask(evaluate=numpy_case.evaluate(9)).evaluated.metrics["head"] == 1


def test_a_bundle_that_lies_in_a_read_only_folder_is_left_as_it_was(ready, numpy_case) -> None:
    assert [path.name for path in (numpy_case.folder / "bundle").iterdir()] == ["experiment.py"]


def test_a_child_of_experiment_code_does_not_inherit_the_owners_socket(start, case) -> None:
    code = (
        "import os, subprocess, sys\nimport numpy as np\nfrom federation import Experiment\n"
        "class Task:\n"
        "    def train(self, model, data, round):\n"
        "        done = subprocess.run([sys.executable, '-c',"
        ' \'import os; print(sum(os.readlink("/proc/self/fd/" + fd).startswith("socket")'
        ' for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)'
        ' or os.path.islink("/proc/self/fd/" + fd)))\'], capture_output=True, text=True, close_fds=False)\n'
        "        return {'loss': float(done.stdout)}\n"
        "    def evaluate(self, model, data): return {}\n"
        "experiment = Experiment(name='t', model={'w': np.zeros(1)}, task=Task(), shard='patients')\n"
    )
    curious = case(code)
    trainer = start()
    trainer.ask(prepare=curious.prepare)
    assert trainer.ask(train=curious.train(1)).trained.metrics["loss"] == 0
