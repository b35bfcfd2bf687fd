from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.collaborator.protection import (
    PIECE_BYTES,
    EvaluationClaim,
    OutgoingPayload,
    TrainingClaim,
    check_encoded,
    check_evaluation,
    check_payload,
    check_training,
)
from federation.compression import encode_payload, load_codec
from federation.errors import StorageError, TaskError
from federation.names import PayloadName
from federation.plan import PayloadPlan
from federation.tensors import DType, TensorSchema, TensorSpec, pack
from federation.tensors.digest import payload_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ELEMENTS = PIECE_BYTES // 4 + 10
SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="w", dtype=DType.FLOAT32, shape=(ELEMENTS,)),
        TensorSpec(name="h", dtype=DType.BFLOAT16, shape=(7,)),
        TensorSpec(name="n", dtype=DType.INT64, shape=(3,)),
    ]
)


def _file(path: Path, data: bytes | bytearray) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


@pytest.fixture
def buffer() -> Iterator[bytearray]:
    arrays = {spec.name: np.ones(spec.shape, dtype=spec.dtype.numpy) for spec in SCHEMA}
    yield pack(SCHEMA, arrays)


def test_a_finite_payload_passes_and_gives_its_digest(tmp_path: Path, buffer: bytearray) -> None:
    descriptor = _file(tmp_path / "p", buffer)
    assert check_payload(descriptor, SCHEMA, "delta") == payload_digest(buffer)
    os.close(descriptor)


@pytest.mark.parametrize(("tensor", "index"), [("w", 0), ("w", PIECE_BYTES // 4 + 3), ("h", 6)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_does_not_leave_the_site(
    tmp_path: Path, buffer: bytearray, tensor: str, index: int, bad: float
) -> None:
    spec = SCHEMA[tensor]
    start = SCHEMA.offsets[tensor] + index * spec.dtype.itemsize
    buffer[start : start + spec.dtype.itemsize] = np.array(bad, dtype=spec.dtype.numpy).tobytes()
    descriptor = _file(tmp_path / "p", buffer)
    with pytest.raises(TaskError, match="NotFinite"):
        check_payload(descriptor, SCHEMA, "delta")
    os.close(descriptor)


def test_a_payload_that_shrinks_under_our_hands_is_refused(tmp_path: Path, buffer: bytearray) -> None:
    descriptor = _file(tmp_path / "p", buffer[:-1])
    with pytest.raises(TaskError, match="WrongResult"):
        check_payload(descriptor, SCHEMA, "delta")
    os.close(descriptor)


def _bad_at(buffer: bytearray, tensor: str, index: int) -> None:
    spec = SCHEMA[tensor]
    start = SCHEMA.offsets[tensor] + index * spec.dtype.itemsize
    buffer[start : start + spec.dtype.itemsize] = np.array(np.nan, dtype=spec.dtype.numpy).tobytes()


def test_pieces_are_sent_as_they_are_in_whatever_order_they_are_asked_for(tmp_path: Path, buffer: bytearray) -> None:
    descriptor = _file(tmp_path / "p", buffer)
    outgoing = OutgoingPayload(descriptor, "delta", SCHEMA)
    for position, size in ((5, 11), (0, 40), (10, 20), (PIECE_BYTES + 3, 7), (len(buffer) - 9, 9)):
        assert outgoing.pread(position, size) == buffer[position : position + size]
    os.close(descriptor)


@pytest.mark.parametrize("asked", [0, PIECE_BYTES + 9], ids=["from the beginning", "from where it was cut"])
def test_a_piece_with_a_number_that_is_not_finite_is_not_handed_out(
    tmp_path: Path, buffer: bytearray, asked: int
) -> None:
    _bad_at(buffer, "w", 3)
    descriptor = _file(tmp_path / "p", buffer)
    with pytest.raises(TaskError, match="NotFinite"):
        OutgoingPayload(descriptor, "delta", SCHEMA).pread(asked, 50)
    os.close(descriptor)


def test_pieces_before_a_bad_one_are_handed_out_and_a_payload_checked_before_is_not_checked_again(
    tmp_path: Path, buffer: bytearray
) -> None:
    _bad_at(buffer, "h", 6)
    descriptor = _file(tmp_path / "p", buffer)
    outgoing = OutgoingPayload(descriptor, "delta", SCHEMA)
    assert outgoing.pread(0, PIECE_BYTES) == buffer[:PIECE_BYTES]
    with pytest.raises(TaskError, match="NotFinite") as caught:
        outgoing.pread(PIECE_BYTES, len(buffer) - PIECE_BYTES)
    assert "'h'" in caught.value.traceback
    assert OutgoingPayload(descriptor, "delta", None).pread(0, len(buffer)) == buffer
    os.close(descriptor)


def test_a_payload_that_shrinks_while_it_is_sent_is_not_padded(tmp_path: Path, buffer: bytearray) -> None:
    descriptor = _file(tmp_path / "p", buffer[:-1])
    with pytest.raises(StorageError, match="shorter"):
        OutgoingPayload(descriptor, "delta", SCHEMA).pread(len(buffer) - 8, 8)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("examples", "steps", "metrics", "seconds", "error"),
    [
        pytest.param(0, 1, {}, 0.1, "WrongResult", id="no example"),
        pytest.param(1_000_000, 1, {}, 0.1, "WrongResult", id="a claimed million examples"),
        pytest.param(10, -1, {}, 0.1, "WrongResult", id="negative steps"),
        pytest.param(10, 1, {}, float("nan"), "WrongResult", id="no time"),
        pytest.param(10, 1, {"patient": 3.0}, 0.1, "WrongMetrics", id="a metric the plan does not fix"),
        pytest.param(10, 1, {"loss": float("inf")}, 0.1, "WrongMetrics", id="a metric that is not finite"),
    ],
)
def test_a_claim_of_the_trainer_is_checked(
    examples: int, steps: int, metrics: dict[str, float], seconds: float, error: str
) -> None:
    claim = TrainingClaim(examples=examples, steps=steps, metrics=metrics, seconds=seconds)
    with pytest.raises(TaskError) as caught:
        check_training(claim, shard_examples=100, metrics=("loss",))
    assert caught.value.error_class == error


def test_an_evaluation_over_more_examples_than_there_are_is_refused() -> None:
    claim = EvaluationClaim(examples=11, metrics={"loss": 1.0}, seconds=0.1)
    with pytest.raises(TaskError):
        check_evaluation(claim, shard_examples=10, metrics=("loss",))


def _encoded(codec: str, announced: str = "rand_k:0.1") -> tuple[bytes, PayloadPlan]:
    arrays = {spec.name: np.ones(spec.shape, dtype=spec.dtype.numpy) for spec in SCHEMA}
    plan = PayloadPlan(name=PayloadName("delta"), schema=SCHEMA, codec=announced)
    return encode_payload(SCHEMA, arrays, load_codec(codec), seed=3), plan


@pytest.mark.parametrize("codec", ["rand_k:0.1", "identity"])
def test_an_encoded_payload_passes_and_gives_the_digest_of_its_bytes(tmp_path: Path, codec: str) -> None:
    data, plan = _encoded(codec)
    descriptor = _file(tmp_path / "p", data)
    assert check_encoded(descriptor, len(data), plan) == payload_digest(data)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("data", "error_class"),
    [
        pytest.param(_encoded("rand_k:0.1")[0][:-1], "WrongResult", id="cut"),
        pytest.param(b"\0" * 100, "WrongResult", id="no frame"),
        pytest.param(_encoded("natural")[0], "WrongResult", id="another codec"),
        pytest.param(
            _encoded("identity")[0].replace(np.float32(1).tobytes(), np.float32(np.nan).tobytes(), 1),
            "NotFinite",
            id="not finite",
        ),
    ],
)
def test_an_encoded_payload_that_does_not_decode_to_numbers_does_not_leave_the_site(
    tmp_path: Path, data: bytes, error_class: str
) -> None:
    descriptor = _file(tmp_path / "p", data)
    with pytest.raises(TaskError) as caught:
        check_encoded(descriptor, len(data), _encoded("identity")[1])
    assert caught.value.error_class == error_class
    os.close(descriptor)


@pytest.mark.parametrize("codec", ["identity", "rand_k:1.0"])
def test_finite_numbers_too_large_to_be_squared_do_not_leave_the_site_encoded_either(
    tmp_path: Path, codec: str
) -> None:
    schema = TensorSchema.of([TensorSpec(name="d", dtype=DType.FLOAT64, shape=(5,))])
    plan = PayloadPlan(name=PayloadName("delta"), schema=schema, codec=codec)
    data = encode_payload(schema, {"d": np.full(5, 1e160)}, load_codec(codec), seed=3)
    descriptor = _file(tmp_path / "p", data)
    with pytest.raises(TaskError) as caught:
        check_encoded(descriptor, len(data), plan)
    assert caught.value.error_class == "NotFinite"
    assert "tensor 'd' holds numbers too large to be squared and summed" in caught.value.traceback
    os.close(descriptor)


def test_an_encoded_payload_that_becomes_shorter_is_refused(tmp_path: Path) -> None:
    data, plan = _encoded("rand_k:0.1")
    descriptor = _file(tmp_path / "p", data)
    with pytest.raises(TaskError) as caught:
        check_encoded(descriptor, len(data) + 1, plan)
    assert caught.value.error_class == "WrongResult"
    os.close(descriptor)
