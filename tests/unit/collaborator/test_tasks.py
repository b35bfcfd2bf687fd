from __future__ import annotations

from typing import Any

import pytest

from federation.collaborator.ordering import UnsignedPlanError
from federation.collaborator.tasks import read_base, read_task
from federation.errors import MalformedMessageError
from federation.names import Digest
from federation.plan import ExperimentSpec, PayloadRow, Plan, tensor_rows
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec
from federation.v1 import aggregator_pb2, tensors_pb2

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="w", dtype=DType.FLOAT32, shape=(4,)),
        TensorSpec(name="mean", dtype=DType.FLOAT32, shape=(2,), role=TensorRole.BUFFER),
        TensorSpec(name="head", dtype=DType.FLOAT32, shape=(3,), role=TensorRole.LOCAL),
    ]
)
SPEC = ExperimentSpec(name="trial", shard="numbers", plan=Plan(rounds=3, local=("head",)), tensors=tensor_rows(SCHEMA))
FIRST = Digest(b"m" * 32)


def _descriptor(name: str, schema: TensorSchema, **changes: Any) -> tensors_pb2.PayloadDescriptor:
    fields = {
        "name": name,
        "schema_digest": schema.digest,
        "codec": "identity",
        "encoded_bytes": schema.nbytes,
        "digest": FIRST,
    }
    return tensors_pb2.PayloadDescriptor(**{**fields, **changes})


def _task(**changes: Any) -> aggregator_pb2.Task:
    fields = {
        "kind": aggregator_pb2.TASK_KIND_TRAIN,
        "round": 1,
        "attempt": 1,
        "epoch": 1,
        "payloads": [_descriptor("model", SCHEMA.federated)],
        "deadline_s": 5.0,
    }
    return aggregator_pb2.Task(**{**fields, **changes})


def test_a_task_is_read() -> None:
    order = read_task(_task(), SPEC, FIRST)
    assert order.is_training
    assert (order.asking.round, order.asking.attempt, order.model_digest) == (1, 1, FIRST)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"kind": 0}, id="no kind"),
        pytest.param({"payloads": []}, id="no model"),
        pytest.param({"payloads": [_descriptor("model", SCHEMA)]}, id="local tensors in the model"),
        pytest.param({"payloads": [_descriptor("model", SCHEMA.federated, codec="zip")]}, id="a codec we lack"),
        pytest.param({"payloads": [_descriptor("model", SCHEMA.federated, encoded_bytes=1 << 40)]}, id="a huge size"),
        pytest.param({"payloads": [_descriptor("model", SCHEMA.federated, digest=b"")]}, id="no digest"),
        pytest.param(
            {"payloads": [_descriptor("model", SCHEMA.federated), _descriptor("extra", SCHEMA.federated)]},
            id="a payload the plan does not know",
        ),
    ],
)
def test_a_task_that_makes_no_sense_is_refused_before_anything_is_fetched(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessageError):
        read_task(_task(**changes), SPEC, FIRST)


def test_the_first_model_is_the_signed_one() -> None:
    with pytest.raises(UnsignedPlanError, match="first model"):
        read_task(_task(), SPEC, Digest(b"x" * 32))
    assert read_task(_task(round=2), SPEC, Digest(b"x" * 32)).asking.round == 2


def test_the_tensors_that_stay_are_the_signed_ones() -> None:
    welcome = aggregator_pb2.SessionWelcome(base=_descriptor("base", SCHEMA.local))
    base = read_base(welcome, SPEC, FIRST)
    assert base is not None
    assert base.encoded_bytes == 12
    with pytest.raises(UnsignedPlanError):
        read_base(welcome, SPEC, Digest(b"x" * 32))


def test_local_tensors_are_never_sent() -> None:
    names = [spec.name for plan in SPEC.uploads() for spec in plan.schema]
    assert names == ["w", "mean"]


SCAFFOLD = SPEC.model_copy(update={"downlink": (PayloadRow(name="control", like="parameters"),), "plan": SPEC.plan})


def test_a_training_task_brings_what_the_algorithm_broadcasts() -> None:
    payloads = [_descriptor("model", SCHEMA.federated), _descriptor("control", SCHEMA.parameters)]
    assert list(read_task(_task(payloads=payloads), SCAFFOLD, FIRST).extras) == ["control"]
    with pytest.raises(MalformedMessageError, match="expected model, control"):
        read_task(_task(), SCAFFOLD, FIRST)


def test_an_evaluation_brings_the_model_alone() -> None:
    order = read_task(_task(kind=aggregator_pb2.TASK_KIND_EVALUATE), SCAFFOLD, FIRST)
    assert not order.extras


STEPPED = SPEC.model_copy(update={"plan": Plan(rounds=3, local=("head",), downlink="rand_k:0.5")})


def _step(**changes: Any) -> tensors_pb2.PayloadDescriptor:
    fields: dict[str, Any] = {"codec": "rand_k:0.5", "encoded_bytes": 60, "from_digest": b"f" * 32}
    return _descriptor("step", SCHEMA.parameters, **{**fields, **changes})


@pytest.mark.parametrize("kind", [aggregator_pb2.TASK_KIND_TRAIN, aggregator_pb2.TASK_KIND_EVALUATE])
def test_a_step_is_another_way_to_the_model_and_may_be_missing(kind: Any) -> None:
    payloads = [_descriptor("model", SCHEMA.federated), _step(), _descriptor("buffers", SCHEMA.buffers)]
    order = read_task(_task(kind=kind, round=2, payloads=payloads), STEPPED, FIRST)
    assert order.step is not None
    assert order.step.from_digest == b"f" * 32
    assert order.step.buffers is not None
    assert read_task(_task(kind=kind, payloads=payloads[:1]), STEPPED, FIRST).step is None


@pytest.mark.parametrize(
    ("spec", "rest"),
    [
        pytest.param(SPEC, [_step(), _descriptor("buffers", SCHEMA.buffers)], id="the plan compresses nothing"),
        pytest.param(STEPPED, [_step()], id="no buffers"),
        pytest.param(STEPPED, [_descriptor("buffers", SCHEMA.buffers)], id="buffers alone"),
        pytest.param(STEPPED, [_step(), _descriptor("buffers", SCHEMA)], id="other buffers"),
        *(
            pytest.param(STEPPED, [_step(**changes), _descriptor("buffers", SCHEMA.buffers)], id=name)
            for name, changes in {
                "another codec": {"codec": "top_k:0.5"},
                "too large": {"encoded_bytes": 1 << 20},
                "from nothing": {"from_digest": b""},
                "of another model": {"schema_digest": SCHEMA.digest},
            }.items()
        ),
    ],
)
def test_a_step_that_is_not_the_signed_plans_is_refused(spec: ExperimentSpec, rest: list[Any]) -> None:
    payloads = [_descriptor("model", SCHEMA.federated), *rest]
    with pytest.raises(MalformedMessageError):
        read_task(_task(round=2, payloads=payloads), spec, FIRST)
